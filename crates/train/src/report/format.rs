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
    match text.split_once(' ') {
        Some((number, prefix)) => format!("{} {prefix}", trim_zeros(number)),
        None => trim_zeros(&text).to_string(),
    }
}

/// `65_536` is `64 KiB`.
pub fn bytes(n: usize) -> String {
    const PREFIXES: [(usize, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match PREFIXES.iter().find(|(unit, _)| n >= *unit) {
        Some((unit, prefix)) => format!(
            "{} {prefix}",
            trim_zeros(&significant(n as f64 / *unit as f64))
        ),
        None => format!("{n} B"),
    }
}

fn trim_zeros(number: &str) -> &str {
    match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_significant_digits() {
        let texts = [
            0.0,
            7.0,
            9999.0,
            12_345.0,
            99_960.0,
            3_214_848.0,
            0.5,
            f64::NAN,
        ]
        .map(short);
        assert_eq!(
            texts,
            ["0", "7", "9999", "12.3 k", "100 k", "3.21 M", "0.50", "–"]
        );
        assert_eq!(
            [20_000.0, 12_500.0, 1200.0].map(round),
            ["20 k", "12.5 k", "1200"]
        );
        assert_eq!(
            [512, 65_536, 1_572_864].map(bytes),
            ["512 B", "64 KiB", "1.5 MiB"]
        );
    }

    #[test]
    fn times_have_two_units() {
        assert_eq!(
            [3.21, 59.4, 61.0, 7500.0].map(duration),
            ["3.2 s", "59 s", "1 m 01 s", "2 h 05 m"]
        );
    }
}
