//! Objects of layers that a measurement uses up one after the other.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, measurement::WallTime};

use super::fixture::{Layers, View};

/// Objects that are changed one after the other. When all of them were, upper is emptied and they are as before again.
pub struct Supply<P> {
    pub layers: Layers,
    /// Brings a union with an empty upper to where the measurement starts; tells the number that each change is given,
    /// which has to stay looked up.
    prepare: P,
    /// How many changes are one measurement.
    batch: usize,
    view: Option<View>,
    numbers: Vec<u64>,
    /// Which object comes next.
    next: usize,
}

impl<P: Fn(&View) -> Vec<u64>> Supply<P> {
    pub fn new(layers: Layers, batch: usize, prepare: P) -> Self {
        let mut supply = Self { layers, prepare, batch, view: None, numbers: Vec::new(), next: 0 };
        supply.renew();
        supply
    }

    pub fn view(&self) -> &View {
        self.view.as_ref().expect("a union is open")
    }

    /// The number for a change.
    pub fn number(&self, index: usize) -> u64 {
        self.numbers[index]
    }

    /// Starts again with an empty upper.
    fn renew(&mut self) {
        if let Some(view) = self.view.take() {
            view.close();
        }
        for dir in [self.layers.upper(""), self.layers.work("")] {
            std::fs::remove_dir_all(&dir).unwrap();
            std::fs::create_dir(&dir).unwrap();
        }
        let view = self.layers.open();
        self.numbers = (self.prepare)(&view);
        self.next = 0;
        self.view = Some(view);
    }

    /// Changes the next objects; returns how long that took.
    fn measure(&mut self, change: &impl Fn(&Self, usize)) -> Duration {
        if self.next + self.batch > self.numbers.len() {
            self.renew();
        }
        let first = self.next;
        self.next += self.batch;
        let start = Instant::now();
        for index in first..self.next {
            change(self, index);
        }
        start.elapsed()
    }

    /// Measures a change; returns the median.
    pub fn bench(
        self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        change: impl Fn(&Self, usize),
    ) -> Duration {
        let supply = RefCell::new(self);
        let times = RefCell::new(Vec::new());
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let measured = (0..iterations).map(|_| supply.borrow_mut().measure(&change));
                measured.inspect(|time| times.borrow_mut().push(*time)).sum()
            });
        });
        let mut times = times.into_inner();
        times.sort();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }
}
