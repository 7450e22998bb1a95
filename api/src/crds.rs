//! Generates the files of the folder `crds` from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;
use serde_saphyr::{SerializeError, ser_options};

use crate::realm::TwoFactorRealm;
use crate::user::TwoFactorUser;

/// The command that writes the files, from the root of the workspace.
pub const GENERATE: &str = "cargo run -q -p twofactor-api --bin twofactor-crds -- crds";

/// A file of the folder `crds`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrdFile {
    /// The name of the file.
    pub name: &'static str,
    /// The content: one YAML document.
    pub yaml: String,
}

/// Generates every CRD of the API group, each as a file.
///
/// # Errors
/// Never, as long as the tests of this module pass.
pub fn crds() -> Result<Vec<CrdFile>, SerializeError> {
    Ok(vec![
        file("twofactorusers.yaml", &TwoFactorUser::crd())?,
        file("twofactorrealms.yaml", &TwoFactorRealm::crd())?,
    ])
}

fn file(name: &'static str, crd: &CustomResourceDefinition) -> Result<CrdFile, SerializeError> {
    // Sentences stay on one line, because a change of a folded one would be a diff of the whole
    // paragraph.
    let options = ser_options! { prefer_block_scalars: false };
    let mut crd = serde_json::to_value(crd).map_err(|error| error.to_string())?;
    tidy(&mut crd);
    let yaml = serde_saphyr::to_string_with_options(&crd, options)?;
    let header = format!(
        "# Generated from the types of the crate twofactor-api. Do not edit; run\n#   {GENERATE}\n"
    );
    Ok(CrdFile { name, yaml: header + &yaml })
}

/// Joins the lines of descriptions, because `kubectl explain` wraps them itself, and writes limits
/// as whole numbers, although they are floating point numbers in the library's types.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(description)) = object.get_mut("description") {
                *description = description.replace('\n', " ");
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Number(number) => {
            // A fraction keeps its point, and a whole number is written without an exponent.
            let whole =
                number.to_string().strip_suffix(".0").and_then(|digits| digits.parse::<i64>().ok());
            if let Some(whole) = whole {
                *value = whole.into();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_files_on_disk_are_the_generated_ones() {
        for CrdFile { name, yaml } in crds().unwrap() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds").join(name);
            let on_disk = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(on_disk == yaml, "crds/{name} is out of date. Run: {GENERATE}");
        }
    }

    #[test]
    fn the_yaml_is_read_back_as_the_same_crd() {
        for (file, crd) in crds().unwrap().iter().zip([TwoFactorUser::crd(), TwoFactorRealm::crd()])
        {
            let mut expected = serde_json::to_value(crd).unwrap();
            tidy(&mut expected);
            assert_eq!(serde_saphyr::from_str::<Value>(&file.yaml).unwrap(), expected);
            let read: CustomResourceDefinition = serde_saphyr::from_str(&file.yaml).unwrap();
            assert_eq!(read, serde_json::from_value(expected).unwrap());
        }
    }

    #[test]
    fn the_yaml_is_tidy() {
        let files = crds().unwrap();
        let yaml = &files.iter().map(|file| file.yaml.as_str()).collect::<String>();
        assert!(
            !yaml.contains(".0\n") && !yaml.contains("\\n") && !yaml.contains(": null"),
            "{yaml}"
        );
        assert!(yaml.lines().all(|line| line == line.trim_end() && !line.contains('\t')), "{yaml}");
    }
}
