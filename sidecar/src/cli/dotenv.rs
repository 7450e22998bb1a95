//! Reads `.env`, and says which line is wrong, and what it needs. No error repeats a value, because
//! values are passwords.

use std::collections::BTreeSet;
use std::{env, fs, io, str};

/// Sets the variables of the file `.env` that the environment does not have. Must be called before
/// any other thread starts.
///
/// # Errors
/// If a line is invalid, or a variable is set twice.
pub fn load() -> Result<(), String> {
    let content = match fs::read(".env") {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!(".env: {error}")),
    };
    let text = check(&content, |name| env::var_os(name).is_some())?;
    dotenvy::from_read(text.as_bytes()).map_err(|_| ".env: cannot be read".to_owned())
}

/// Returns the text of the file if every line of it is valid. `is_set` says which variables the
/// environment has.
fn check(content: &[u8], is_set: impl Fn(&str) -> bool) -> Result<&str, String> {
    let text = str::from_utf8(content).map_err(|_| ".env: must be text in UTF-8".to_owned())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut names = BTreeSet::new();
    for item in dotenvy::from_read_iter(text.as_bytes()) {
        match item {
            Ok((name, _)) => {
                if !names.insert(name.clone()) {
                    let line = lines_of(text, &name).nth(1).map_or(0, |(line, _)| line);
                    return Err(format!(
                        ".env, line {line}: {name} is set a second time; keep one of the two lines"
                    ));
                }
            }
            Err(dotenvy::Error::LineParse(rest, _)) => return Err(invalid(text, &rest)),
            Err(_) => return Err(".env: cannot be read".to_owned()),
        }
    }
    // An unknown name after a $ is replaced by nothing, so a password would silently be another.
    for name in &names {
        for (line, value) in lines_of(text, name) {
            let missing = references(value).find(|other| !names.contains(*other) && !is_set(other));
            if missing.is_some() {
                return Err(format!(
                    ".env, line {line}: {name} needs single quotes around its value, because it \
                     has a $"
                ));
            }
        }
    }
    Ok(text)
}

/// Returns the lines that set `name`, with their numbers, and what stands after the `=`.
fn lines_of<'a>(text: &'a str, name: &str) -> impl Iterator<Item = (usize, &'a str)> {
    text.lines().zip(1..).filter_map(move |(line, number)| {
        let (found, value) = assignment(line)?;
        (found == name).then_some((number, value))
    })
}

/// Splits a line at its `=`, without blanks and `export`.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let name = name.trim();
    Some((name.strip_prefix("export ").map_or(name, str::trim), value.trim()))
}

/// Returns the names that a value refers to with a `$`, outside of single quotes.
fn references(value: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    value.char_indices().filter_map(move |(index, character)| match character {
        '\'' => {
            quoted = !quoted;
            None
        }
        '$' if !quoted && !value[..index].ends_with('\\') => {
            let rest = value[index + 1..].trim_start_matches('{');
            let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
            Some(&rest[..end])
        }
        _ => None,
    })
}

/// Returns the error for a line that cannot be read. `rest` begins with that line, or with the
/// value in it.
fn invalid(text: &str, rest: &str) -> String {
    let first = rest.lines().next().unwrap_or_default().trim();
    let is_it = |line: &str| {
        line.trim() == first || assignment(line).is_some_and(|(_, value)| value == first)
    };
    let Some((line, number)) = text.lines().zip(1..).find(|(line, _)| is_it(line)) else {
        return ".env: a line must be of the form NAME=VALUE".to_owned();
    };
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c))
    };
    match assignment(line) {
        Some((name, value)) if is_name(name) => {
            format!(".env, line {number}: {name} needs {}", need(value))
        }
        // What stands before a = could be a part of a password.
        _ => format!(".env, line {number}: must be of the form NAME=VALUE"),
    }
}

/// Returns what a value needs that cannot be read.
fn need(value: &str) -> &'static str {
    match value.chars().next() {
        Some('"') if value.len() > 1 && value.ends_with('"') => {
            "single quotes in place of the double ones, because it has a backslash or a quote"
        }
        Some('"' | '\'') => "a closing quote at the end of its value, and nothing behind it",
        _ if value.contains('\'') => "double quotes around its value, because it has a quote",
        _ if value.contains(['"', '\\']) => {
            "single quotes around its value, because it has a quote or a backslash"
        }
        _ => "quotes around its value, because it has blanks",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        check(text.as_bytes(), |name| name == "HOME").unwrap_err()
    }

    #[test]
    fn valid_files_are_read() {
        for text in [
            "",
            "# a comment\n\nA=1\nexport B=2\r\n",
            "\u{feff}A=1\n",
            "FROM='FountainAI <otp@example.org>'\n",
            "FROM=\"FountainAI <otp@example.org>\" # the sender\n",
            "PASSWORD='a $ecret of \"words\"'\nURL=a\\$b\n",
            "A=x\nB=${A}y\nC=$HOME\n",
            "KEY='-----BEGIN\nMII=\n-----END'\nA=1\n",
        ] {
            assert!(check(text.as_bytes(), |name| name == "HOME").is_ok(), "{text:?}");
        }
    }

    #[test]
    fn an_error_says_the_line_the_variable_and_what_it_needs() {
        for (text, said) in [
            (
                "SMTP_SERVER=mail.example.org\nSMTP_FROM_EMAIL=FountainAI <otp@example.org>\n",
                "line 2: SMTP_FROM_EMAIL needs quotes around its value, because it has blanks",
            ),
            ("A=1\n\n# A=0\nA=2\n", "line 4: A is set a second time; keep one of the two lines"),
            ("A=1\nexport A=1\n", "line 2: A is set a second time; keep one of the two lines"),
            ("A=1\nB='secret\nC=2\n", "line 2: B needs a closing quote"),
            ("A=\"secret\n", "line 1: A needs a closing quote"),
            ("A=it's\n", "line 1: A needs double quotes"),
            ("A=se\\cret\n", "line 1: A needs single quotes"),
            ("A=\"se\\cret\"\n", "line 1: A needs single quotes in place of the double ones"),
            ("A='secret' x\n", "line 1: A needs a closing quote at the end"),
            ("A=se$cret\n", "line 1: A needs single quotes around its value, because it has a $"),
            ("A=\"se${cret}\"\n", "line 1: A needs single quotes"),
            ("A=1\nsecret\n", "line 2: must be of the form NAME=VALUE"),
            ("A=1\nse cret=1\n", "line 2: must be of the form NAME=VALUE"),
            ("A: secret\n", "line 1: must be of the form NAME=VALUE"),
        ] {
            let error = error(text);
            assert!(error.starts_with(&format!(".env, {said}")), "{text:?}: {error}");
            assert!(!error.contains("cret"), "{error}");
        }
        let utf16 = [0xff, 0xfe, b'A', 0, b'=', 0, b'1', 0];
        assert_eq!(check(&utf16, |_| false).unwrap_err(), ".env: must be text in UTF-8");
    }
}
