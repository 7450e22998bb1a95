//! Parses quantities of resources as Kubernetes writes them. A text such as `500m` or `64Mi`
//! becomes a number that can be compared, and the text is kept.

use thiserror::Error;

/// Maximum length of a quantity. No amount that a pod can request needs more characters.
const LONGEST: usize = 24;
const NANO: i128 = 1_000_000_000;

/// A quantity of 0 or more.
#[derive(Clone, Debug)]
pub struct Quantity {
    text: String,
    nanos: i128,
}

/// The resource that a quantity measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// CPU, in cores, not finer than a thousandth.
    Cpu,
    /// Memory, in whole bytes.
    Memory,
}

/// Errors of a text that is not a valid quantity.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum QuantityError {
    /// The text is not in Kubernetes' notation, or is negative.
    #[error("must be a quantity such as {}", example(*.0))]
    Notation(Resource),
    /// The amount of memory is not in whole bytes. Kubernetes accepts a slip such as `64m`, but no
    /// container can start with it.
    #[error("must be whole bytes: `m` means a thousandth, `Mi` a mebibyte")]
    FractionOfByte,
    /// The amount of CPU is finer than Kubernetes measures.
    #[error("must not be finer than a thousandth of a core, `1m`")]
    TooFine,
}

impl Resource {
    /// The name in lists of resources.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }
}

const fn example(resource: Resource) -> &'static str {
    match resource {
        Resource::Cpu => "`500m` or `1`",
        Resource::Memory => "`64Mi` or `1Gi`",
    }
}

impl Quantity {
    /// Parses a quantity.
    ///
    /// # Errors
    /// Fails if the text is not a quantity of that resource.
    pub fn parse(text: &str, resource: Resource) -> Result<Self, QuantityError> {
        let nanos = nanos(text).ok_or(QuantityError::Notation(resource))?;
        match resource {
            Resource::Cpu if nanos % (NANO / 1000) != 0 => Err(QuantityError::TooFine),
            Resource::Memory if nanos % NANO != 0 => Err(QuantityError::FractionOfByte),
            _ => Ok(Self { text: text.to_owned(), nanos }),
        }
    }

    /// Returns nothing of a resource.
    #[must_use]
    pub fn zero() -> Self {
        Self { text: "0".to_owned(), nanos: 0 }
    }

    /// Returns the sum, in the largest unit that needs no fraction.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let nanos = self.nanos.saturating_add(other.nanos);
        Self { text: text(nanos), nanos }
    }

    /// The text as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the quantity is 0.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether the quantity is larger than `other`.
    #[must_use]
    pub const fn exceeds(&self, other: &Self) -> bool {
        self.nanos > other.nanos
    }

    /// Whether the quantity is larger than `factor` times `other`.
    #[must_use]
    pub const fn exceeds_multiple(&self, other: &Self, factor: &Self) -> bool {
        self.nanos.saturating_mul(NANO) > other.nanos.saturating_mul(factor.nanos)
    }
}

/// Writes a number of nanos of cores or bytes.
fn text(nanos: i128) -> String {
    if nanos % NANO != 0 {
        return format!("{}m", nanos / (NANO / 1000));
    }
    let whole = nanos / NANO;
    let fits = |(shift, _): &(u32, &str)| whole != 0 && whole % (1 << shift) == 0;
    match [(30, "Gi"), (20, "Mi"), (10, "Ki")].into_iter().find(fits) {
        Some((shift, unit)) => format!("{}{unit}", whole >> shift),
        None => whole.to_string(),
    }
}

fn nanos(text: &str) -> Option<i128> {
    if text.len() > LONGEST {
        return None;
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let unit = digits.checked_mul(nanos_of_unit(suffix)?)?;
    let parts = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    // Kubernetes rounds up to whole nanos.
    Some(unit / parts + i128::from(unit % parts != 0))
}

fn nanos_of_unit(suffix: &str) -> Option<i128> {
    let decimal = |exponent: i32| Some(10_i128.pow(u32::try_from(exponent + 9).ok()?));
    let binary = |exponent: u32| Some(NANO << exponent);
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            if (-9..=18).contains(&exponent) { decimal(exponent) } else { None }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> i128 {
        Quantity::parse(text, Resource::Memory).unwrap().nanos / NANO
    }

    #[test]
    fn the_notations_of_kubernetes_are_read() {
        assert_eq!(bytes("64Mi"), 64 << 20);
        assert_eq!(bytes("1.5Gi"), 3 << 29);
        assert_eq!(bytes(".5Ki"), 512);
        assert_eq!(bytes("5.k"), 5000);
        assert_eq!(bytes("1e3"), 1000);
        assert_eq!(bytes("1E+3"), 1000);
        assert_eq!(bytes("2E"), 2_000_000_000_000_000_000);
        assert_eq!(bytes("128000m"), 128);
        let half = Quantity::parse("0.5", Resource::Cpu).unwrap();
        let same = Quantity::parse("500m", Resource::Cpu).unwrap();
        assert!(!half.exceeds(&same) && !same.exceeds(&half));
        assert_eq!(half.as_str(), "0.5");
        assert!(Quantity::parse("0", Resource::Cpu).unwrap().is_zero());
    }

    #[test]
    fn a_sum_is_written_as_people_write_it() {
        let sum = |one: &str, other: &str, resource| {
            let parse = |text| Quantity::parse(text, resource).unwrap();
            parse(one).plus(&parse(other)).as_str().to_owned()
        };
        assert_eq!(sum("0.1", "10m", Resource::Cpu), "110m");
        assert_eq!(sum("1", "1000m", Resource::Cpu), "2");
        assert_eq!(sum("0", "0", Resource::Cpu), "0");
        assert_eq!(sum("1Gi", "0", Resource::Memory), "1Gi");
        assert_eq!(sum("1Gi", "512Mi", Resource::Memory), "1536Mi");
        assert_eq!(sum("1k", "24", Resource::Memory), "1Ki");
        assert_eq!(sum("1k", "1", Resource::Memory), "1001");
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        let texts = [
            "",
            " ",
            "1 Gi",
            "-1",
            "+1",
            "abc",
            "1GiB",
            "1mi",
            "1..2",
            ".",
            "1.2.3",
            "Mi",
            "1e",
            "1e99",
            "1e-99",
            "٣Mi",
            "1\n",
            "0x10",
            "NaN",
            "99999999999999999999999999999999Ei",
            "99999999999999999999999Ei",
        ];
        for text in texts {
            for resource in [Resource::Cpu, Resource::Memory] {
                assert_eq!(
                    Quantity::parse(text, resource).err(),
                    Some(QuantityError::Notation(resource)),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn thousandths_of_bytes_and_millionths_of_cores_are_refused() {
        assert_eq!(
            Quantity::parse("64m", Resource::Memory).err(),
            Some(QuantityError::FractionOfByte)
        );
        assert_eq!(
            Quantity::parse("0.5", Resource::Memory).err(),
            Some(QuantityError::FractionOfByte)
        );
        assert_eq!(Quantity::parse("10u", Resource::Cpu).err(), Some(QuantityError::TooFine));
        assert_eq!(Quantity::parse("0.0001", Resource::Cpu).err(), Some(QuantityError::TooFine));
    }
}
