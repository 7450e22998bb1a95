//! Reads the replies of a mail server (RFC 5321 §4.2). A reply counts by its code; of its text only
//! the keywords in the answer to EHLO are used.

use std::fmt;

/// Maximum number of bytes in a line; RFC 5321 §4.5.3.1.5 has 512.
const LONGEST_LINE: usize = 4096;
/// Maximum number of lines in a reply.
const MOST_LINES: usize = 256;

/// A reply: a code, and the texts of its lines.
pub(super) struct Reply {
    pub(super) code: u16,
    texts: Vec<String>,
}

impl Reply {
    /// Returns the texts after the code, one for each line. Bytes that are not UTF-8 are replaced.
    pub(super) fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Whether it has a code from 200 to 299.
    pub(super) fn is_success(&self) -> bool {
        self.code / 100 == 2
    }
}

/// The codes, such as "SMTP 550 5.1.1". The server's words are left out, because they may repeat an
/// address.
impl fmt::Display for Reply {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SMTP {}", self.code)?;
        let word = self.texts.first().and_then(|text| text.split_whitespace().next());
        match word.filter(|word| is_enhanced_code(word)) {
            Some(enhanced) => write!(formatter, " {enhanced}"),
            None => Ok(()),
        }
    }
}

/// Checks an enhanced status code (RFC 3463 §2), such as 5.1.1.
fn is_enhanced_code(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    let is_number = |part: &&str| {
        (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    parts.len() == 3 && parts.iter().all(is_number)
}

/// Removes the first reply from `unread`. Returns `None` if it is not complete yet.
///
/// # Errors
/// If `unread` does not begin with a reply.
pub(super) fn take(unread: &mut Vec<u8>) -> Result<Option<Reply>, NoReply> {
    let (mut code, mut texts, mut read) = (None, Vec::new(), 0);
    while let Some(length) = unread[read..].iter().position(|byte| *byte == b'\n') {
        let mut line = &unread[read..read + length];
        while let Some(shorter) = line.strip_suffix(b"\r") {
            line = shorter;
        }
        read += length + 1;
        let (found, text, is_last) = parse(line).ok_or(NoReply)?;
        // A server that says yes in one line and no in the next has said neither.
        if length > LONGEST_LINE
            || texts.len() >= MOST_LINES
            || code.is_some_and(|code| code != found)
        {
            return Err(NoReply);
        }
        code = Some(found);
        texts.push(String::from_utf8_lossy(text).into_owned());
        if is_last {
            unread.drain(..read);
            return Ok(Some(Reply { code: found, texts }));
        }
    }
    if unread.len() - read > LONGEST_LINE { Err(NoReply) } else { Ok(None) }
}

/// Parses a line without its end: code, text, and whether it is the last line.
fn parse(line: &[u8]) -> Option<(u16, &[u8], bool)> {
    let (digits, rest) = line.split_at_checked(3)?;
    if !matches!(digits[0], b'2'..=b'5') || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    match rest.split_first() {
        None => Some((code, rest, true)),
        Some((b' ', text)) => Some((code, text, true)),
        Some((b'-', text)) => Some((code, text, false)),
        Some(_) => None,
    }
}

/// The server sent something other than a reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoReply;

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes in `text`, and what is left.
    fn read(text: &[u8]) -> Result<(Vec<String>, usize), NoReply> {
        let (mut unread, mut replies) = (text.to_vec(), Vec::new());
        while let Some(reply) = take(&mut unread)? {
            replies.push(reply.to_string());
        }
        Ok((replies, unread.len()))
    }

    #[test]
    fn a_reply_counts_by_its_code() {
        for (text, said) in [
            (&b"250 ok\r\n"[..], "SMTP 250"),
            (b"250\r\n", "SMTP 250"),
            (b"250 \r\n", "SMTP 250"),
            (b"250\n", "SMTP 250"),
            (b"250 ok\r\r\n", "SMTP 250"),
            (b"250-a\r\n250-b\r\n250\r\n", "SMTP 250"),
            (b"250-\r\n250 b\r\n", "SMTP 250"),
            (b"535 Error: \xc7\xeb\xca\xb9\xd3\xc3\r\n", "SMTP 535"),
            (b"550 5.1.1 <alice@example.org>: f\xfcr immer\r\n", "SMTP 550 5.1.1"),
            (b"550-5.7.1 a\r\n550 5.7.1 b\r\n", "SMTP 550 5.7.1"),
            (b"571 no\r\n", "SMTP 571"),
            (b"450 4.7.1.2 later\r\n", "SMTP 450"),
            (b"250 2.0.alice ok\r\n", "SMTP 250"),
        ] {
            let text_shown = String::from_utf8_lossy(text);
            assert_eq!(read(text), Ok((vec![said.to_owned()], 0)), "{text_shown}");
        }
        let two = read(b"250 queued\r\n250 stray\r\n");
        assert_eq!(two, Ok((vec!["SMTP 250".to_owned(), "SMTP 250".to_owned()], 0)));
    }

    #[test]
    fn a_reply_that_is_not_complete_is_waited_for() {
        for text in [&b""[..], b"2", b"250", b"250 ok\r", b"250-a\r\n", b"250-a\r\n250"] {
            assert_eq!(read(text), Ok((Vec::new(), text.len())));
        }
    }

    #[test]
    fn anything_else_is_no_reply() {
        let (long, many) = (vec![b'2'; LONGEST_LINE + 1], b"250-a\r\n".repeat(MOST_LINES + 1));
        let long_line = [b"250 ".as_slice(), &[b'x'; LONGEST_LINE + 1], b"\r\n"].concat();
        for text in [
            &b"\r\n"[..],
            b"ok\r\n",
            b"25\r\n",
            b"2500 ok\r\n",
            b"250ok\r\n",
            b"250\t\r\n",
            b"150 ok\r\n",
            b"650 ok\r\n",
            b"25x ok\r\n",
            b" 250 ok\r\n",
            b"250-yes\r\n550 no\r\n",
            b"250-\r\n550 no\r\n",
            b"HTTP/1.1 400 Bad Request\r\n",
            b"\x16\x03\x01\n",
            &long,
            &long_line,
            &many,
        ] {
            assert_eq!(read(text), Err(NoReply), "{}", String::from_utf8_lossy(text));
        }
    }
}
