//! `cargo xtask bench chart`: the figures of Linux as a picture.

use std::fmt::Write;

use super::figures::Line;
use crate::shell::Result;

/// Whose bars there are, what they are called, and what each is filled with.
const SHOWN: [(&str, &str, &str); 6] = [
    ("ioqueue", "ioqueue (io_uring)", "#d9480f"),
    ("ioqueue-readiness", "ioqueue (epoll)", "#e08a3c"),
    ("tokio", "tokio", "#3b5b7a"),
    ("monoio", "monoio", "#6c8ead"),
    ("compio", "compio", "#7d97b0"),
    ("smol", "smol", "#b3a1c4"),
];

const WIDTH: u32 = 760;
/// Where the bars begin, and how long one is that says 1.
const LEFT: u32 = 130;
const ONE: f64 = 520.0;
const BAR: u32 = 11;
const BETWEEN: u32 = 16;
const TOP: u32 = 46;

/// The chart of figures as `--json` writes them: each program's rate as a share of the better one by hand.
pub fn chart(figures: &str) -> Result<String> {
    let lines: Vec<Line> = figures
        .lines()
        .filter(|line| line.contains("\"platform\":\"linux\""))
        .map(|line| Line(line.to_string()))
        .collect();
    let mut benches = Vec::new();
    for line in &lines {
        let bench = line.field("bench")?;
        if !benches.contains(&bench) {
            benches.push(bench);
        }
    }
    if benches.is_empty() {
        return Err("there are no figures of Linux in it".into());
    }
    let (mut bars, mut y) = (String::new(), TOP);
    for bench in benches {
        let begin = y;
        for (program, _, fill) in SHOWN {
            let is_its = |line: &&Line| {
                line.field("bench").is_ok_and(|it| it == bench)
                    && line.field("impl").is_ok_and(|it| it == program)
            };
            let Some(line) = lines.iter().find(is_its) else { continue };
            let share = line.number("ratio_raw")?;
            let (length, middle) = (share * ONE, y + BAR - 2);
            writeln!(
                bars,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.0}\" height=\"{}\" fill=\"{fill}\"/>\
                 <text class=\"share{}\" x=\"{:.0}\" y=\"{middle}\">{share:.2}</text>",
                BAR - 1,
                // Within the bar, where it is long enough: outside it would lie on the dashed line.
                if share > 0.2 { " in" } else { "" },
                f64::from(LEFT) + length + if share > 0.2 { -3.0 } else { 4.0 },
            )?;
            y += BAR;
        }
        let middle = (begin + y) / 2 + 4;
        writeln!(
            bars,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{bench}</text>",
            LEFT - 8
        )?;
        y += BETWEEN;
    }
    Ok(page(&bars, y))
}

/// The bars with what explains them.
fn page(bars: &str, height: u32) -> String {
    let mut legend = String::new();
    let mut x = LEFT;
    for (_, name, fill) in SHOWN {
        let _ = write!(
            legend,
            "<rect x=\"{x}\" y=\"26\" width=\"10\" height=\"10\" fill=\"{fill}\"/>\
             <text x=\"{}\" y=\"35\">{name}</text>",
            x + 14,
        );
        x += 28 + 6 * name.len() as u32;
    }
    let (one, bottom) = (f64::from(LEFT) + ONE, height - BETWEEN + 4);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\">\n\
         <title>Rates on Linux, as a share of the better program by hand</title>\n\
         <style>text {{ font: 12px sans-serif; fill: #57606a }} .share {{ font-size: 9px }} \
         .in {{ text-anchor: end; fill: #fff }} \
         line {{ stroke: #57606a; stroke-dasharray: 3 3 }} \
         @media (prefers-color-scheme: dark) {{ text:not(.in) {{ fill: #adbac7 }} line {{ stroke: #adbac7 }} }}</style>\n\
         <text x=\"{LEFT}\" y=\"14\">Rate as a share of the better of epoll and io_uring by hand (dashed): longer is \
         faster</text>\n\
         {legend}\n{bars}\
         <line x1=\"{one}\" y1=\"{TOP}\" x2=\"{one}\" y2=\"{bottom}\"/>\n</svg>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_programs_share() {
        let row = |bench, program, share: f64| {
            format!(
                "{{\"platform\":\"linux\",\"bench\":\"{bench}\",\"impl\":\"{program}\",\"ratio_raw\":{share:.4}}}"
            )
        };
        let figures = [
            row("wake", "raw-uring", 1.0),
            row("wake", "ioqueue", 0.5),
            row("wake", "tokio", 0.25),
            row("churn", "ioqueue", 1.1),
        ];
        let chart = chart(&figures.join(",\n")).unwrap();
        for part in
            ["width=\"260\"", "width=\"130\"", "width=\"572\"", ">wake</text>", ">churn</text>"]
        {
            assert!(chart.contains(part), "{part} is not in {chart}");
        }
        // Nobody's bar but those of the three.
        assert_eq!(chart.matches("class=\"share").count(), 3);
        assert!(super::chart("[]").is_err());
    }
}
