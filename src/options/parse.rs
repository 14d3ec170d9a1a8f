//! Values: sizes with suffixes, booleans, numbers. What is accepted, and the words of a refusal, are the
//! stock tools'.

use crate::error::{Error, Result};

pub(super) fn parse_bool(name: &str, text: &str) -> Result<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(Error::invalid(format!("Parameter '{name}' expects 'on' or 'off'"))),
    }
}

/// White space that may stand before a number.
fn skip_space(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c'])
}

/// A number in decimal, octal (leading 0) or hexadecimal (leading 0x), with an optional sign.
pub(super) fn parse_number(name: &str, text: &str) -> Result<u64> {
    let refuse = || Error::invalid(format!("Parameter '{name}' expects a number"));
    let body = skip_space(text);
    let (negative, body) = match body.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, body.strip_prefix('+').unwrap_or(body)),
    };
    let (digits, radix) = match body.strip_prefix("0x").or_else(|| body.strip_prefix("0X")) {
        Some(rest) => (rest, 16),
        None if body.len() > 1 && body.starts_with('0') => (&body[1..], 8),
        None => (body, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(refuse());
    }
    let value = u64::from_str_radix(digits, radix)
        .map_err(|_| Error::invalid(format!("Value '{text}' is too large for parameter '{name}'")))?;
    Ok(if negative { value.wrapping_neg() } else { value })
}

/// log2 of what a suffix multiplies with.
fn suffix_shift(suffix: char) -> Option<u32> {
    let letters = ['B', 'K', 'M', 'G', 'T', 'P', 'E'];
    let place = letters.iter().position(|l| *l == suffix.to_ascii_uppercase())?;
    Some(10 * place as u32)
}

/// A size in bytes: `64k`, `0x10000`, `1.5G`. Suffixes b, k, M, G, T, P, E in either case; a decimal fraction
/// needs a suffix above b and is rounded to the nearest byte; hexadecimal takes no suffix. `name` is for the message.
pub fn parse_size(name: &str, text: &str) -> Result<u64> {
    let refuse = || {
        Error::invalid(format!("Parameter '{name}' expects a non-negative number below 2^64")).hint(
            "\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively.",
        )
    };
    let out_of_range = || Error::invalid(format!("Value '{text}' is out of range for parameter '{name}'"));
    let body = skip_space(text);
    if let Some(rest) = body.strip_prefix('-') {
        let is_number = !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
        return Err(if is_number { out_of_range() } else { refuse() });
    }
    let body = body.strip_prefix('+').unwrap_or(body);
    if let Some(digits) = body.strip_prefix("0x").or_else(|| body.strip_prefix("0X")) {
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(refuse());
        }
        return u64::from_str_radix(digits, 16).map_err(|_| out_of_range());
    }
    let (number, shift) = match body.chars().last() {
        Some(last) if !last.is_ascii_digit() && last != '.' => {
            (&body[..body.len() - last.len_utf8()], suffix_shift(last).ok_or_else(refuse)?)
        }
        _ => (body, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !all_digits(whole) || !all_digits(fraction) {
        return Err(refuse());
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().map_err(|_| out_of_range())? };
    let part = fraction_bytes(fraction, shift);
    if shift == 0 && fraction.bytes().any(|b| b != b'0') {
        return Err(refuse());
    }
    whole.checked_mul(1 << shift).and_then(|w| w.checked_add(part)).ok_or_else(out_of_range)
}

/// The digits after the point, times 2^shift, rounded to the nearest byte.
fn fraction_bytes(digits: &str, shift: u32) -> u64 {
    // 18 digits tell apart any two multiples of 2^-60.
    let digits = &digits[..digits.len().min(18)];
    let value: u128 = digits.parse().unwrap_or(0);
    let unit = 10u128.pow(digits.len() as u32);
    (((value << shift) + unit / 2) / unit) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_the_stock_tool_takes() {
        let cases: [(&str, u64); 24] = [
            ("0", 0),
            ("512", 512),
            ("010", 10),
            ("1b", 1),
            ("1B", 1),
            ("5.", 5),
            ("1.0", 1),
            ("5.k", 5120),
            (".5k", 512),
            ("1.5k", 1536),
            ("+5k", 5120),
            ("  7k", 7168),
            ("\t7k", 7168),
            ("64K", 65536),
            ("0x10000", 65536),
            ("0xb", 11),
            ("0X1E", 30),
            ("123.456M", 129452999),
            ("0.6k", 614),
            ("1.9999k", 2048),
            ("1.0005k", 1025),
            ("0.00146484375k", 2),
            ("1.0000000000000000000000001k", 1024),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            let parsed = parse_size("size", text).unwrap();
            assert_eq!(parsed, bytes, "{text}");
        }
        for (text, shift) in [("1k", 10), ("1M", 20), ("1g", 30), ("1T", 40), ("1p", 50), ("1e", 60)] {
            assert_eq!(parse_size("size", text).unwrap(), 1 << shift);
        }
    }

    #[test]
    fn sizes_the_stock_tool_refuses() {
        for text in [
            "", "foo", "1.5", "1e3", "0.5b", "0x10.8", "0x10k", "0x", ".", ".k", "1..5k", "1kk", "1k1",
            "nan", "inf", "- 5", "+-5", "-5k", "-x", "64k ", "64kb", "64Q", "8\u{e9}",
        ] {
            let text = parse_size("size", text).unwrap_err().to_string();
            assert!(
                text.starts_with("Parameter 'size' expects a non-negative number below 2^64\n"),
                "{text}"
            );
        }
        for text in ["-1", "-0", " -5", "16E", "20E", "18446744073709551616"] {
            let error = parse_size("size", text).unwrap_err().to_string();
            assert_eq!(error, format!("Value '{text}' is out of range for parameter 'size'"));
        }
    }

    #[test]
    fn numbers_and_booleans() {
        for (text, value) in [("010", 8), ("0x10", 16), (" 8", 8), ("+8", 8), ("0", 0), ("-0", 0)] {
            assert_eq!(parse_number("n", text).unwrap(), value, "{text}");
        }
        for text in ["", "foo", "8 ", "0b100", "1e1", "8.0", "-", "09", "0x", "16k"] {
            assert_eq!(parse_number("n", text).unwrap_err().to_string(), "Parameter 'n' expects a number");
        }
        assert!(parse_number("n", "18446744073709551616").unwrap_err().to_string().contains("too large"));
        assert_eq!(parse_number("n", "-1").unwrap(), u64::MAX);
        for text in ["on", "yes", "true", "y"] {
            assert!(parse_bool("b", text).unwrap());
        }
        for text in ["ON", "On", "1", "0", ""] {
            assert!(parse_bool("b", text).is_err());
        }
    }
}
