//! Draws QR codes of `otpauth://` URIs, as a PNG picture or as characters for a terminal.

use std::io::Write;

use fast_qr::{ECL, QRBuilder};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use thiserror::Error;

use crate::secret::SecretText;

/// Number of light modules around the code. Readers need four (ISO/IEC 18004 §9.1).
const QUIET_ZONE: usize = 4;
/// Width of a module in pixels, enough to be photographed from a screen. The PNG relies on it being
/// half the number of bits of a byte: other widths compress worse.
const SCALE: usize = 4;
/// Width of the largest code with error correction level M, in modules. With it, a picture has
/// fewer than 700 bytes.
const LARGEST_M: usize = 49;

/// Type of a row whose bytes are the pixels themselves. Any other would give the rows more than
/// four values of bytes, which compress worse.
const NO_FILTER: u8 = 0;
/// The lowest level that searches for matches lazily. Higher ones need twice the time, and do not
/// make this picture smaller.
const COMPRESSION: u32 = 4;

/// The text does not fit into the largest QR code.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the otpauth URI is too long for a QR code: use a shorter username or issuer")]
pub struct QrError;

/// A square of dark and light modules, including the quiet zone.
pub struct QrPicture {
    dark: Vec<bool>,
    width: usize,
}

impl QrPicture {
    /// Encodes `text` with error correction level M, or L if the picture would be large.
    ///
    /// # Errors
    /// If `text` is longer than 2,953 bytes, the maximum of a QR code.
    pub fn encode(text: &SecretText) -> Result<Self, QrError> {
        let encode = |level| QRBuilder::new(text.expose_secret()).ecl(level).build();
        let small = encode(ECL::M).ok().filter(|code| code.size <= LARGEST_M);
        let code = match small {
            Some(code) => code,
            None => encode(ECL::L).map_err(|_| QrError)?,
        };
        let width = code.size + 2 * QUIET_ZONE;
        let mut dark = vec![false; width * width];
        for row in 0..code.size {
            for column in 0..code.size {
                dark[(row + QUIET_ZONE) * width + column + QUIET_ZONE] = code[row][column].value();
            }
        }
        Ok(Self { dark, width })
    }

    fn is_dark(&self, row: usize, column: usize) -> bool {
        row < self.width && self.dark[row * self.width + column]
    }

    /// Returns the picture as PNG, with one bit for each pixel and four pixels for each module. The
    /// picture of a URI of at most 190 characters has at most 700 bytes.
    #[must_use]
    pub fn png(&self) -> Vec<u8> {
        let side = self.width * SCALE;
        // Two modules are one byte of pixels wide, and four rows high.
        let mut rows = Vec::with_capacity((self.width + 1) * side);
        for modules in self.dark.chunks_exact(self.width) {
            let light = |module: Option<&bool>| if module == Some(&true) { 0x0 } else { 0xf };
            let row = modules.chunks(2).map(|pair| light(pair.first()) << 4 | light(pair.get(1)));
            for _ in 0..SCALE {
                rows.push(NO_FILTER);
                rows.extend(row.clone());
            }
        }
        let mut file = Vec::new();
        let side = u32::try_from(side)
            .unwrap_or_else(|_| unreachable!("a QR code has at most 177 modules a side"));
        let mut encoder = png::Encoder::new(&mut file, side, side);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::One);
        encoder
            .write_header()
            .and_then(|mut writer| {
                writer.write_chunk(png::chunk::IDAT, &compress(&rows))?;
                writer.finish()
            })
            .unwrap_or_else(|_| unreachable!("memory does not fail to be written"));
        file
    }

    /// Returns the picture for a terminal: two modules for each character, in ANSI black on white,
    /// so that it looks the same on dark and light backgrounds.
    #[must_use]
    pub fn terminal(&self) -> String {
        let mut text = String::new();
        for row in (0..self.width).step_by(2) {
            text.push_str("\x1b[30;107m");
            for column in 0..self.width {
                text.push(match (self.is_dark(row, column), self.is_dark(row + 1, column)) {
                    (true, true) => '█',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (false, false) => ' ',
                });
            }
            text.push_str("\x1b[0m\n");
        }
        text
    }
}

/// Compresses the rows of a picture. The encoder of the crate `png` needs six times the time of the
/// compression alone, and the operator draws a picture for each new user.
fn compress(rows: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(COMPRESSION));
    encoder
        .write_all(rows)
        .and_then(|()| encoder.finish())
        .unwrap_or_else(|_| unreachable!("memory does not fail to be written"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otpauth;
    use crate::seed::Seed;
    use crate::totp::TotpParameters;

    #[test]
    fn a_text_that_is_too_long_is_refused() {
        assert!(QrPicture::encode(&SecretText::new("x".repeat(2900))).is_ok());
        assert_eq!(QrPicture::encode(&SecretText::new("x".repeat(3000))).err(), Some(QrError));
    }

    #[test]
    fn the_picture_of_a_user_has_at_most_700_bytes() {
        let seed = Seed::from_bytes((1..=20).collect()).unwrap();
        for name in ["alice", "alice@example.org", "firstname.lastname@department.example.org"] {
            let username = name.parse().unwrap();
            let uri = otpauth::uri(&username, "FountainAI", &seed, &TotpParameters::default());
            let length = QrPicture::encode(&uri).unwrap().png().len();
            assert!(length <= 700, "{name}: {length} bytes");
        }
        let longest = QrPicture::encode(&SecretText::new("x".repeat(190))).unwrap().png().len();
        assert!(longest <= 700, "{longest} bytes");
    }

    #[test]
    fn both_forms_have_a_quiet_zone() {
        let picture = QrPicture::encode(&SecretText::new("otpauth://totp/x".to_owned())).unwrap();
        let terminal = picture.terminal();
        let first = terminal.lines().next().unwrap();
        assert!(!first.contains(['█', '▀', '▄']));
        assert!(picture.png().starts_with(b"\x89PNG"));
    }
}
