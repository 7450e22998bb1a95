//! Checks the structure that `lib.rs` of a crate promises: a file imports only from its own folder
//! or from a layer below, and no files import each other in a circle. It reads the source, because
//! the compiler allows both within a crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A crate and its layers, from top to bottom. A layer lists files and folders of `src`, each of
/// which may import from the layers below, and from itself.
struct Structure {
    source: &'static str,
    layers: &'static [&'static [&'static str]],
}

const STRUCTURES: [Structure; 2] = [
    Structure {
        source: "operator/src",
        layers: &[
            &["main", "testing"],
            &["cli"],
            &["process", "self_test"],
            &["redis"],
            &["user"],
            &["realm", "watch", "webhook"],
            &["state"],
            &["k8s", "certificates", "metrics", "failpoint"],
        ],
    },
    Structure {
        source: "sidecar/src",
        layers: &[
            &["main", "testing"],
            &["cli"],
            &["serve", "dev"],
            &["process"],
            &["routes"],
            &["otp"],
            &["refusal"],
            &["delivery", "audit", "metrics", "error"],
        ],
    },
];

/// The path of a module below the crate, such as `["state", "queue"]`.
type Module = Vec<String>;

/// The imports of one crate, by file.
struct Imports(BTreeMap<Module, BTreeSet<Module>>);

impl Imports {
    fn read(source: &Path) -> Self {
        let mut texts = BTreeMap::new();
        read_modules(source, &Module::new(), &mut texts);
        let known: BTreeSet<Module> = texts.keys().cloned().collect();
        let imports = texts.iter().map(|(module, text)| {
            let paths = paths(text).into_iter().filter_map(|path| resolve(module, &path, &known));
            (module.clone(), paths.filter(|found| found != module).collect())
        });
        Self(imports.collect())
    }

    fn upward(&self, layers: &[&[&str]]) -> Vec<String> {
        let layer = |module: &Module| {
            let found = layers.iter().position(|layer| layer.contains(&module[0].as_str()));
            found.unwrap_or_else(|| panic!("{} is in no layer", module[0]))
        };
        let all = self.0.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to)));
        all.filter(|(from, to)| from[0] != to[0] && layer(from) >= layer(to))
            .map(|(from, to)| format!("{} imports {}", from.join("::"), to.join("::")))
            .collect()
    }

    /// The files from which a way of imports leads back to the file itself.
    fn circular(&self) -> Vec<String> {
        let leads_back = |start: &&Module| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![*start]);
            while let Some(module) = next.pop() {
                for imported in &self.0[module] {
                    if imported == *start {
                        return true;
                    }
                    if seen.insert(imported) {
                        next.push(imported);
                    }
                }
            }
            false
        };
        self.0.keys().filter(leads_back).map(|module| module.join("::")).collect()
    }
}

/// Reads every module below `folder` without its tests. `lib.rs` is left out: it declares all.
fn read_modules(folder: &Path, parent: &Module, texts: &mut BTreeMap<Module, String>) {
    let entries: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let mut test_modules = BTreeSet::new();
    let mut found = Vec::new();
    for path in entries {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let child = || parent.iter().cloned().chain([name.clone()]).collect::<Module>();
        if path.is_dir() {
            read_modules(&path, &child(), texts);
        } else if name != "lib" {
            let text = fs::read_to_string(&path).unwrap();
            let (text, test_files) = without_tests(&text);
            test_modules.extend(test_files);
            found.push((name.clone(), if name == "mod" { parent.clone() } else { child() }, text));
        }
    }
    found.retain(|(name, ..)| !test_modules.contains(name));
    texts.extend(found.into_iter().map(|(_, module, text)| (module, text)));
}

/// The text without comments and test modules, and the names of the test modules that have files.
fn without_tests(text: &str) -> (String, Vec<String>) {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = code.flat_map(|line| [line, "\n"]).collect();
    let (mut rest, mut kept, mut files) = (code.as_str(), String::new(), Vec::new());
    while let Some((before, after)) = rest.split_once("#[cfg(test)]\nmod ") {
        kept.push_str(before);
        let declaration = after.lines().next().unwrap();
        rest = if let Some(file) = declaration.strip_suffix(';') {
            files.push(file.to_owned());
            &after[declaration.len()..]
        } else {
            after.split_once("\n}\n").map_or("", |(_, rest)| rest)
        };
    }
    (kept + rest, files)
}

/// Every path that the text imports, and every path from `crate` or `super` that it uses in place.
fn paths(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("use ") {
        let begins = rest[..start].rsplit('\n').next().unwrap().trim_start();
        let end = rest[start..].find(';').map_or(rest.len(), |end| start + end);
        if begins.is_empty() || begins.starts_with("pub") {
            expand(rest[start + 4..end].trim(), String::new(), &mut paths);
            rest = &rest[end..];
        } else {
            rest = &rest[start + 4..];
        }
    }
    for root in ["crate::", "super::"] {
        for (start, _) in text.match_indices(root) {
            let path = text[start..].split(|c: char| !(c.is_alphanumeric() || "_:".contains(c)));
            let path = path.take(1).map(|path| path.trim_end_matches(':').to_owned());
            paths.extend(path.filter(|path| path.contains("::")));
        }
    }
    paths
}

/// Writes the paths of an import such as `crate::{a, b::{self, c}}` out in full.
fn expand(tree: &str, prefix: String, paths: &mut Vec<String>) {
    let Some((head, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap().trim();
        return paths.push((prefix + path).trim_end_matches("::self").to_owned());
    };
    let prefix = prefix + head.trim();
    let group = group.trim().strip_suffix('}').unwrap_or(group);
    let (mut depth, mut start) = (0, 0);
    for (end, character) in group.char_indices().chain([(group.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(group[start..end].trim(), prefix.clone(), paths);
                start = end + 1;
            }
            _ => {}
        }
    }
}

/// The module of this crate that `path`, as it stands in `module`, lies in.
fn resolve(module: &Module, path: &str, known: &BTreeSet<Module>) -> Option<Module> {
    let mut segments = path.split("::").peekable();
    let mut base = match *segments.peek()? {
        "crate" => Module::new(),
        "self" | "super" => module.clone(),
        child if known.contains(&[module.as_slice(), &[child.to_owned()]].concat()) => {
            module.clone()
        }
        _ => return None,
    };
    for segment in segments {
        match segment {
            "crate" | "self" => {}
            "super" => drop(base.pop()),
            segment => {
                let next = [base.as_slice(), &[segment.to_owned()]].concat();
                if !known.contains(&next) && !known.iter().any(|known| known.starts_with(&next)) {
                    break;
                }
                base = next;
            }
        }
    }
    known.contains(&base).then_some(base)
}

#[test]
fn no_file_imports_from_a_layer_above_its_own_or_in_a_circle() {
    for Structure { source, layers } in STRUCTURES {
        let imports =
            Imports::read(&Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(source));
        assert!(imports.0.len() > 20, "{source}: the modules were not found");
        assert_eq!(imports.upward(layers), Vec::<String>::new(), "{source}: upward imports");
        assert_eq!(imports.circular(), Vec::<String>::new(), "{source}: circles of files");
    }
}

#[test]
fn imports_are_recognized_in_every_form() {
    let text = "use crate::{a, b::{self, c as d}};\npub use super::e;\nuse std::fs;\n// use crate::f;\n\
                fn x() { crate::g::h(); }\n#[cfg(test)]\nmod tests {\n    use crate::i;\n}\n";
    let found: BTreeSet<String> = paths(&without_tests(text).0).into_iter().collect();
    for path in ["crate::a", "crate::b", "crate::b::c", "super::e", "crate::g::h"] {
        assert!(found.contains(path), "{path} is not in {found:?}");
    }
    assert!(!found.iter().any(|path| path.ends_with('f') || path.ends_with('i')), "{found:?}");
    let known = [vec!["a".to_owned()], vec!["a".to_owned(), "b".to_owned()]].into();
    let resolved = resolve(&vec!["a".to_owned(), "b".to_owned()], "super::Thing", &known);
    assert_eq!(resolved, Some(vec!["a".to_owned()]));
    let upward = Imports([(known.first().unwrap().clone(), known.clone())].into());
    assert_eq!(upward.upward(&[&["a"]]), Vec::<String>::new(), "a folder may import from itself");
}

/// The names in backticks of each numbered line in the module doc of `lib.rs`.
fn promised(lib: &str) -> Vec<BTreeSet<String>> {
    let mut layers: Vec<BTreeSet<String>> = Vec::new();
    for line in lib.lines().map_while(|line| line.strip_prefix("//!")) {
        let starts = line.split_once(". ").is_some_and(|(n, _)| n.trim().parse::<u8>().is_ok());
        if starts {
            layers.push(BTreeSet::new());
        }
        if let Some(layer) = layers.last_mut() {
            let names = line.split('`').skip(1).step_by(2);
            // Types are described, not listed.
            let names = names.filter(|name| !name.contains(char::is_uppercase));
            layer.extend(names.map(str::to_owned));
        }
    }
    layers
}

#[test]
fn lib_rs_lists_the_layers_that_are_checked() {
    for Structure { source, layers } in STRUCTURES {
        let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(source).join("lib.rs");
        let checked: Vec<BTreeSet<String>> = layers
            .iter()
            .map(|layer| layer.iter().map(|name| (*name).to_owned()).collect())
            .collect();
        assert_eq!(promised(&fs::read_to_string(lib).unwrap()), checked, "{source}");
    }
}
