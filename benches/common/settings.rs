//! How the benches measure.

use std::time::Duration;

use criterion::Criterion;

/// Few samples: of what takes long itself, or takes long to prepare.
pub fn few_samples() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args()
}
