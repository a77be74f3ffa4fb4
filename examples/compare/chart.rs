//! What was measured, as a picture: for each workload a bar for each mount, to the left or the right of the first mount's time.

use std::fmt::Write as _;

use crate::report::Report;
use crate::workloads::Group;

/// The widths of the names and of the whole, and the heights of a line of text, a bar, and the space between workloads.
const NAMES: f64 = 330.0;
const WIDTH: f64 = 960.0;
const LINE: f64 = 22.0;
const BAR: f64 = 9.0;
const SPACE: f64 = 7.0;
/// What is left free at the right for the longest bar's number.
const MARGIN: f64 = 50.0;

/// One for each mount but the first. They can be told apart on white and on black.
const COLOURS: [&str; 8] = ["#8c8c8c", "#b07aa1", "#e15759", "#f28e2b", "#4e79a7", "#59a14f", "#76b7b2", "#9c755f"];

const STYLE: &str = "text { font: 13px system-ui, sans-serif; fill: #1f2328 } .group { font-weight: bold } \
    .number { font-size: 9px } .axis { stroke: #d1d9e0 } .one { stroke: #1f2328 } \
    @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .axis { stroke: #3d444d } .one { stroke: #e6edf3 } }";

/// The chart as SVG.
pub fn svg(report: &Report) -> String {
    let mut chart = Chart { scale: Scale::of(report), body: String::new(), y: 0.0 };
    chart.legend(report);
    let top = chart.y;
    for group in Group::ALL {
        if report.rows.iter().any(|row| row.group == group) {
            chart.y += SPACE;
            chart.text(0.0, "group", group.title());
            chart.y += LINE;
        }
        for row in report.rows.iter().filter(|row| row.group == group) {
            chart.bars(&row.workload, (1..report.mounts.len()).map(|mount| row.ratio(mount)));
        }
        if let Some(means) = report.programs().filter(|_| group == Group::Programs) {
            chart.bars("geometric mean", means[1..].iter().map(|mean| Some(*mean)));
        }
    }
    chart.finish(top)
}

/// The logarithmic axis.
#[derive(Debug)]
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    /// An axis on which all ratios have their place.
    fn of(report: &Report) -> Self {
        let all = || report.rows.iter().flat_map(|row| (1..report.mounts.len()).filter_map(|mount| row.ratio(mount)));
        Self { least: all().fold(0.5, f64::min), most: all().fold(2.0, f64::max) }
    }

    fn x(&self, ratio: f64) -> f64 {
        let part = (ratio / self.least).ln() / (self.most / self.least).ln();
        NAMES + (WIDTH - MARGIN - NAMES) * part
    }

    /// 1, 2, 5, 10 and so on, as far as they are on the axis.
    fn marks(&self) -> Vec<f64> {
        let decades = (-4..=4).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)));
        decades.filter(|mark| (self.least..=self.most).contains(mark)).collect()
    }
}

struct Chart {
    scale: Scale,
    body: String,
    y: f64,
}

impl Chart {
    fn add(&mut self, element: std::fmt::Arguments) {
        // A String takes everything.
        let _ = writeln!(self.body, "{element}");
    }

    fn text(&mut self, x: f64, class: &str, text: &str) {
        let y = self.y + LINE * 0.7;
        self.add(format_args!(r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{}</text>"#, escaped(text)));
    }

    fn legend(&mut self, report: &Report) {
        let title = format!(
            "Time as a multiple of that of: {}. A bar to the left is faster, one to the right slower.",
            report.mounts[0]
        );
        self.text(0.0, "group", &title);
        self.y += LINE;
        let mut x = 0.0;
        for (index, mount) in report.mounts.iter().skip(1).enumerate() {
            let width = 40.0 + 7.5 * mount.chars().count() as f64;
            if x + width > WIDTH {
                x = 0.0;
                self.y += LINE;
            }
            let (y, colour) = (self.y + LINE * 0.25, colour(index));
            self.add(format_args!(r#"<rect x="{x:.1}" y="{y:.1}" width="12" height="12" fill="{colour}"/>"#));
            self.text(x + 17.0, "name", mount);
            x += width;
        }
        self.y += LINE * 2.0;
    }

    fn bars(&mut self, name: &str, ratios: impl ExactSizeIterator<Item = Option<f64>>) {
        let height = (BAR * ratios.len() as f64).max(LINE * 0.7);
        let middle = self.y + height / 2.0 - LINE * 0.5;
        let top = std::mem::replace(&mut self.y, middle);
        self.text(10.0, "name", name);
        for (index, ratio) in ratios.enumerate() {
            let Some(ratio) = ratio else { continue };
            let (one, end, y) = (self.scale.x(1.0), self.scale.x(ratio), top + BAR * index as f64);
            let (x, width, thick, colour) = (one.min(end), (end - one).abs().max(1.0), BAR - 1.0, colour(index));
            self.add(format_args!(
                r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{thick}" fill="{colour}"/>"#
            ));
            let (x, y) = (one.max(end) + 3.0, y + BAR - 2.0);
            self.add(format_args!(r#"<text x="{x:.1}" y="{y:.1}" class="number">{ratio:.2}</text>"#));
        }
        self.y = top + height + SPACE;
    }

    /// The axis goes behind the bars.
    fn finish(self, top: f64) -> String {
        let mut axis = String::new();
        for mark in self.scale.marks() {
            let (x, bottom, class) = (self.scale.x(mark), self.y, if mark == 1.0 { "one" } else { "axis" });
            axis += &format!(r#"<line x1="{x:.1}" y1="{top:.1}" x2="{x:.1}" y2="{bottom:.1}" class="{class}"/>"#);
            let above = top - 4.0;
            axis += &format!(r#"<text x="{x:.1}" y="{above:.1}" text-anchor="middle">{}</text>"#, shortest(mark));
            axis.push('\n');
        }
        let height = self.y + SPACE;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
             height=\"{height:.0}\" role=\"img\">\n<style>{STYLE}</style>\n{axis}{}</svg>\n",
            self.body
        )
    }
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// Without zeros at the end, and without the errors of powers of ten.
fn shortest(mark: f64) -> String {
    let text = format!("{mark:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    /// Elements that are not ended, of what is well-formed but for that.
    fn open_elements(svg: &str) -> Vec<&str> {
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').expect("the end of a tag");
            let name = tag.split([' ', '/']).next().unwrap_or_default();
            if let Some(ended) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(ended));
            } else if !tag.ends_with('/') {
                open.push(name);
            }
        }
        open
    }

    #[test]
    fn well_formed_with_a_bar_for_each_ratio() {
        let svg = svg(&example());
        assert!(open_elements(&svg).is_empty(), "{svg}");
        // Two ratios, their mean, and the legend.
        assert_eq!(svg.matches("<rect").count(), 4, "{svg}");
        assert!(svg.contains("a &lt; b") && svg.contains(">4.00<") && svg.contains(">2.00<"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn the_axis_is_logarithmic() {
        let scale = Scale { least: 0.1, most: 10.0 };
        let distance = |a, b| scale.x(b) - scale.x(a);
        assert!((distance(0.1, 1.0) - distance(1.0, 10.0)).abs() < 1e-6);
        assert_eq!(
            scale.marks().iter().map(|mark| shortest(*mark)).collect::<Vec<_>>(),
            ["0.1", "0.2", "0.5", "1", "2", "5", "10"]
        );
    }

    #[test]
    fn nothing_measured() {
        let mut report = example();
        report.rows.clear();
        assert!(open_elements(&svg(&report)).is_empty());
    }
}
