//! Numbers as people write them.

use super::group::Spread;

/// `12_345_678.0` is `12.3 M`: three significant digits and a decimal prefix.
pub fn short(x: f64) -> String {
    const PREFIXES: [(f64, &str); 4] = [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")];
    if !x.is_finite() {
        return "–".into();
    }
    if x.fract() == 0.0 && x.abs() < 1e4 {
        return format!("{x:.0}");
    }
    let Some((unit, prefix)) = PREFIXES.iter().find(|(unit, _)| x.abs() >= *unit) else {
        return significant(x);
    };
    format!("{}{prefix}", significant(x / unit))
}

/// [`short`] without zeros after the point, for ticks: `20 k`, `1.5 M`.
pub fn round(x: f64) -> String {
    let text = short(x);
    let (number, prefix) = text.split_once(' ').unwrap_or((&text, ""));
    let number = if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    };
    format!("{number} {prefix}").trim_end().to_string()
}

fn significant(x: f64) -> String {
    let digits = match x.abs() {
        a if a >= 99.95 => 0,
        a if a >= 9.995 => 1,
        _ => 2,
    };
    format!("{x:.digits$}")
}

/// Seconds as `48 s`, `3 m 12 s` or `2 h 05 m`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".into();
    }
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} m {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} m", s / 3600, s % 3600 / 60),
    }
}

/// `1.842 ± 0.006` over several seeds, `1.842` for one, `diverged` when no seed gave a number.
pub fn spread(s: &Spread, digits: usize) -> String {
    match s {
        Spread { count: 0, .. } => "–".into(),
        Spread { mean, .. } if !mean.is_finite() => "diverged".into(),
        Spread { count: 1, mean, .. } => format!("{mean:.digits$}"),
        Spread {
            mean, deviation, ..
        } => format!("{mean:.digits$} ± {deviation:.digits$}"),
    }
}
