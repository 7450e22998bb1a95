//! Writes a text so that programs that show it make no links of it.
//!
//! Mail programs and phones make a link of whatever looks like an address. In a message with a code
//! such a link would be trusted, although its text comes from the request for the code.

/// Maximum length of a result for a text of `characters`: no space follows the character after
/// another inserted space.
#[must_use]
pub const fn longest(characters: usize) -> usize {
    characters + characters.div_ceil(2)
}

/// Returns the text with a space inside of everything that could be taken for the address of a
/// page, a mailbox or a file. Amounts and times stay as they are.
#[must_use]
pub fn separated(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut separated = String::with_capacity(text.len() + 8);
    let mut before = ' ';
    for (index, &character) in characters.iter().enumerate() {
        separated.push(character);
        let next = characters.get(index + 1).copied().unwrap_or(' ');
        let inside = !before.is_whitespace() && !next.is_whitespace();
        let is_sign = match character {
            _ if is_dot(character) => {
                inside && (next.is_alphabetic() || is_in_ip_address(&characters, index))
            }
            ':' | '：' => inside && !before.is_numeric(),
            '@' | '＠' => inside,
            // Two of them begin the path of a file on another machine.
            '\\' => before.is_whitespace() && next == '\\',
            _ => false,
        };
        before = character;
        if is_sign {
            separated.push(' ');
            before = ' ';
        }
    }
    separated
}

/// Whether a character divides the labels of a name (RFC 3490 §3.1), or looks like one that does.
fn is_dot(character: char) -> bool {
    matches!(character, '.' | '\u{2024}' | '\u{3002}' | '\u{ff0e}' | '\u{ff61}')
}

/// Whether the dot at `index` is one of three or more in a row of digits, unlike that of an amount.
fn is_in_ip_address(characters: &[char], index: usize) -> bool {
    let part = |character: &&char| character.is_numeric() || is_dot(**character);
    let after = characters[index..].iter().take_while(part);
    let before = characters[..index].iter().rev().take_while(part);
    before.chain(after).filter(|character| is_dot(**character)).count() >= 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_no_link() {
        for (text, expected) in [
            ("https://evil.example/login", "https: //evil. example/login"),
            ("WWW.evil.example", "WWW. evil. example"),
            ("see evil.example.", "see evil. example."),
            ("bob@evil.example", "bob@ evil. example"),
            ("bob@localhost", "bob@ localhost"),
            ("mailto:bob tel:+491 app:x", "mailto: bob tel: +491 app: x"),
            ("http://192.168.1.1/x", "http: //192. 168. 1. 1/x"),
            ("192.168.1.1", "192. 168. 1. 1"),
            ("evil。example evil．example", "evil。 example evil． example"),
            (r"\\server\share", r"\ \server\share"),
            ("xn--80ak6aa92e.com", "xn--80ak6aa92e. com"),
            ("пример.рф", "пример. рф"),
        ] {
            assert_eq!(separated(text), expected);
        }
    }

    #[test]
    fn other_texts_stay_as_they_are() {
        for text in [
            "transfer 100 to X",
            "1.000,50 € at 10:30",
            "1.000.000",
            "v1.2.3",
            "Yes. No: maybe @ 5",
            "1/2, a-b & (c)",
            ".",
            "",
        ] {
            assert_eq!(separated(text), text);
        }
    }

    #[test]
    fn no_text_becomes_longer_than_announced() {
        for text in [".a", ":a", "@a", ".1", r" \\", "a.", "a:", "@@", "::", "a@", "1."] {
            let text: String = text.chars().cycle().take(140).collect();
            assert!(separated(&text).chars().count() <= longest(140), "{text}");
        }
    }
}
