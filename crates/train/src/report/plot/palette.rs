//! Colours, each in a light and a dark version.
//!
//! Plots are drawn in the light colours. For the HTML page [`themed`] exchanges them for CSS variables, which
//! [`css_variables`] defines for both modes, so that an inline plot follows the reader's choice.

use std::fmt::Write;

use plotters::style::RGBColor;

/// One colour of the house.
pub struct Ink {
    variable: &'static str,
    light: (u8, u8, u8),
    dark: (u8, u8, u8),
}

/// Background, text, secondary text, grid lines.
pub const PAPER: Ink = Ink {
    variable: "paper",
    light: (0xff, 0xff, 0xff),
    dark: (0x14, 0x17, 0x1c),
};
pub const TEXT: Ink = Ink {
    variable: "text",
    light: (0x1b, 0x1f, 0x24),
    dark: (0xe4, 0xe7, 0xec),
};
pub const MUTED: Ink = Ink {
    variable: "muted",
    light: (0x62, 0x6b, 0x77),
    dark: (0x98, 0xa2, 0xb0),
};
pub const GRID: Ink = Ink {
    variable: "grid",
    light: (0xe4, 0xe7, 0xeb),
    dark: (0x2b, 0x31, 0x39),
};

/// Series colours; neighbours differ in hue and in lightness.
pub const SERIES: [Ink; 8] = [
    Ink {
        variable: "s0",
        light: (0x2b, 0x62, 0xc4),
        dark: (0x78, 0xa5, 0xf5),
    },
    Ink {
        variable: "s1",
        light: (0xd9, 0x6b, 0x0b),
        dark: (0xf4, 0xa0, 0x55),
    },
    Ink {
        variable: "s2",
        light: (0x12, 0x85, 0x5c),
        dark: (0x57, 0xc7, 0x97),
    },
    Ink {
        variable: "s3",
        light: (0xc2, 0x2f, 0x62),
        dark: (0xf2, 0x7f, 0xa5),
    },
    Ink {
        variable: "s4",
        light: (0x76, 0x4f, 0xbf),
        dark: (0xb4, 0x9b, 0xf2),
    },
    Ink {
        variable: "s5",
        light: (0x1a, 0x8f, 0xa6),
        dark: (0x5c, 0xc8, 0xdb),
    },
    Ink {
        variable: "s6",
        light: (0x8a, 0x65, 0x45),
        dark: (0xcb, 0xa5, 0x82),
    },
    Ink {
        variable: "s7",
        light: (0x7f, 0x84, 0x16),
        dark: (0xc3, 0xc7, 0x5a),
    },
];

/// The colour of a hue; more hues than colours begin again.
pub fn series(hue: usize) -> &'static Ink {
    &SERIES[hue % SERIES.len()]
}

impl Ink {
    /// The colour that plots are drawn in.
    pub fn color(&self) -> RGBColor {
        let (r, g, b) = self.light;
        RGBColor(r, g, b)
    }

    /// `var(--name)`.
    pub fn variable(&self) -> String {
        format!("var(--{})", self.variable)
    }
}

fn inks() -> impl Iterator<Item = &'static Ink> {
    [&PAPER, &TEXT, &MUTED, &GRID].into_iter().chain(&SERIES)
}

/// `--name: light-dark(#light, #dark);` for every colour.
pub fn css_variables() -> String {
    let hex = |(r, g, b): (u8, u8, u8)| format!("#{r:02x}{g:02x}{b:02x}");
    inks().fold(String::new(), |mut css, ink| {
        let _ = writeln!(
            css,
            "  --{}: light-dark({}, {});",
            ink.variable,
            hex(ink.light),
            hex(ink.dark)
        );
        css
    })
}

/// The plot in CSS variables instead of colours.
pub fn themed(svg: &str) -> String {
    inks().fold(svg.to_string(), |svg, ink| {
        let (r, g, b) = ink.light;
        svg.replace(
            &format!("\"#{r:02X}{g:02X}{b:02X}\""),
            &format!("\"{}\"", ink.variable()),
        )
    })
}
