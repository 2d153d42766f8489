//! Walks a mapping field by field. A fault is noted and the walk goes on, so
//! that one look at a manifest finds all that is wrong with it.

use std::{fs::File, io::Read, path::Path, sync::Arc};

use anyport_proto::convert;

use super::{
    bytes,
    near::nearest,
    node::{Key, Node, Value},
    parse_duration,
    place::{ManifestFault, Place},
    words::Word,
};

/// The faults of one file.
pub(super) struct Faults {
    file: Arc<str>,
    found: Vec<ManifestFault>,
    /// Paths that hold less than the user wrote there: what anyone else says of
    /// them is no news.
    spoiled: Vec<String>,
}

impl Faults {
    pub(super) fn new(file: Arc<str>) -> Self {
        Self {
            file,
            found: Vec::new(),
            spoiled: Vec::new(),
        }
    }

    /// Notes a fault; the value at `path` is then not what the user wrote.
    pub(super) fn add(&mut self, path: String, line: u64, problem: String) {
        self.spoiled.push(path.clone());
        self.found.push(ManifestFault {
            place: Place {
                file: Arc::clone(&self.file),
                line,
                path,
            },
            problem,
        });
    }

    pub(super) fn into_parts(self) -> (Vec<ManifestFault>, Vec<String>) {
        (self.found, self.spoiled)
    }

    /// Reads the mapping `node`, which `noun` says what it stands for.
    pub(super) fn mapping<T>(
        &mut self,
        node: &Node,
        path: String,
        noun: &'static str,
        read: impl FnOnce(&mut Fields<'_, '_>) -> T,
    ) -> Option<T> {
        let Value::Map(entries) = &node.value else {
            let given = node.value.describe();
            let problem = format!("is {given}; right is {noun} as a mapping, FIELD: VALUE");
            self.add(path, node.line, problem);
            return None;
        };
        let mut fields = Fields {
            noun,
            path,
            entries,
            asked: Vec::new(),
            faults: self,
        };
        let value = read(&mut fields);
        fields.refuse_unknown();
        Some(value)
    }
}

/// The fields of one mapping.
pub(super) struct Fields<'n, 'f> {
    noun: &'static str,
    path: String,
    entries: &'n [(Key, Node)],
    /// The fields that were asked for, which are the ones there are.
    asked: Vec<&'static str>,
    faults: &'f mut Faults,
}

impl<'n> Fields<'n, '_> {
    /// The node of a field; `null` counts as not set.
    fn take(&mut self, name: &'static str) -> Option<&'n Node> {
        self.asked.push(name);
        let (_, node) = self.entries.iter().find(|(key, _)| key.name == name)?;
        (node.value != Value::Null).then_some(node)
    }

    pub(super) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    fn fault(&mut self, name: &str, node: &Node, problem: String) {
        let path = self.path_of(name);
        self.faults.add(path, node.line, problem);
    }

    fn read<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let node = self.take(name)?;
        match read(&node.value) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.fault(name, node, problem);
                None
            }
        }
    }

    /// A text; empty where it is not set.
    pub(super) fn text(&mut self, name: &'static str) -> String {
        self.read(name, text).unwrap_or_default()
    }

    /// A text that may also be written as a whole number.
    pub(super) fn text_or_number(&mut self, name: &'static str) -> String {
        let read = |value: &Value| match value {
            Value::Whole(number) => Ok(number.to_string()),
            value => text(value),
        };
        self.read(name, read).unwrap_or_default()
    }

    /// A text that stands there or in a file, whose path counts from the
    /// manifest's directory.
    pub(super) fn text_or_file(&mut self, name: &'static str, file: &'static str) -> String {
        let text = self.text(name);
        let Some(node) = self.take(file) else {
            return text;
        };
        let read = match &node.value {
            _ if !text.is_empty() => Err(format!("is set beside {name}; one of them is enough")),
            Value::Text(path) => read_file(&self.faults.file, path),
            other => Err(format!(
                "is {}; right is the path of a file",
                other.describe()
            )),
        };
        read.unwrap_or_else(|problem| {
            self.fault(file, node, problem);
            // Not to be called missing too.
            let path = self.path_of(name);
            self.faults.spoiled.push(path);
            String::new()
        })
    }

    /// A list of texts. Unreadable ones are left empty, so that the others keep
    /// their positions.
    pub(super) fn texts(&mut self, name: &'static str) -> Vec<String> {
        let items = self.items(name);
        let read = |(path, node): (String, &Node)| {
            text(&node.value).unwrap_or_else(|problem| {
                self.faults.add(path, node.line, problem);
                String::new()
            })
        };
        items.into_iter().map(read).collect()
    }

    /// A whole number from 0; 0 where it is not set.
    pub(super) fn count(&mut self, name: &'static str) -> u32 {
        let read = |value: &Value| {
            let whole = match value {
                Value::Whole(number) => u32::try_from(*number).ok(),
                _ => None,
            };
            whole.ok_or_else(|| {
                let given = value.describe();
                format!("is {given}; right is a whole number from 0 to {}", u32::MAX)
            })
        };
        self.read(name, read).unwrap_or_default()
    }

    pub(super) fn number(&mut self, name: &'static str) -> Option<f64> {
        self.read(name, |value| match value {
            Value::Whole(number) => Ok(*number as f64),
            Value::Real(number) => Ok(*number),
            other => Err(format!("is {}; right is a number", other.describe())),
        })
    }

    pub(super) fn flag(&mut self, name: &'static str) -> Option<bool> {
        self.read(name, |value| match value {
            Value::Flag(flag) => Ok(*flag),
            other => Err(format!("is {}; right is true or false", other.describe())),
        })
    }

    pub(super) fn duration(&mut self, name: &'static str) -> Option<prost_types::Duration> {
        self.read(name, |value| match value {
            Value::Text(text) => match parse_duration(text) {
                Ok(duration) => Ok(convert::write_duration(duration)),
                Err(error) => Err(error.to_string()),
            },
            Value::Whole(number) => Err(format!(
                "{number} has no unit; right is {number}ms, {number}s, {number}m or {number}h"
            )),
            other => Err(format!(
                "is {}; right is 500ms, 2s, 5m, 1h or 30d",
                other.describe()
            )),
        })
    }

    /// A text, or `{ hex: ff00 }` for what is no text.
    pub(super) fn bytes(&mut self, name: &'static str) -> Vec<u8> {
        let Some(node) = self.take(name) else {
            return Vec::new();
        };
        if let Value::Map(_) = node.value {
            let path = self.path_of(name);
            let read = |fields: &mut Fields<'_, '_>| {
                fields.read("hex", |value| bytes::parse_hex(&text(value)?))
            };
            let bytes = self.faults.mapping(node, path, "bytes", read);
            return bytes.flatten().unwrap_or_default();
        }
        match text(&node.value) {
            Ok(text) => text.into_bytes(),
            Err(problem) => {
                self.fault(name, node, problem);
                Vec::new()
            }
        }
    }

    /// One of several words; the enum's unspecified value where it is not set.
    pub(super) fn choice<T: Word>(&mut self, name: &'static str) -> i32 {
        let read = |value: &Value| {
            let given = match value {
                Value::Text(text) => {
                    if let Some((_, choice)) = T::WORDS.iter().find(|(word, _)| word == text) {
                        return Ok((*choice).into());
                    }
                    format!("{text:?}")
                }
                other => other.describe(),
            };
            let word = |word: &'static str| if word.is_empty() { "\"\"" } else { word };
            let words: Vec<&str> = T::WORDS.iter().map(|(text, _)| word(text)).collect();
            let noun = T::NOUN;
            Err(format!("{given} is no {noun}; right is {}", one_of(&words)))
        };
        self.read(name, read).unwrap_or_default()
    }

    /// A mapping in the mapping.
    pub(super) fn mapping<T>(
        &mut self,
        name: &'static str,
        noun: &'static str,
        read: impl FnOnce(&mut Fields<'_, '_>) -> T,
    ) -> Option<T> {
        let node = self.take(name)?;
        let path = self.path_of(name);
        self.faults.mapping(node, path, noun, read)
    }

    /// A list of mappings. Unreadable ones are left empty, as in
    /// [`texts`](Self::texts).
    pub(super) fn mappings<T: Default>(
        &mut self,
        name: &'static str,
        noun: &'static str,
        mut read: impl FnMut(&mut Fields<'_, '_>) -> T,
    ) -> Vec<T> {
        let items = self.items(name);
        let read = |(path, node)| {
            let value = self.faults.mapping(node, path, noun, &mut read);
            value.unwrap_or_default()
        };
        items.into_iter().map(read).collect()
    }

    /// The items of a list with their paths.
    pub(super) fn items(&mut self, name: &'static str) -> Vec<(String, &'n Node)> {
        let Some(node) = self.take(name) else {
            return Vec::new();
        };
        let path = self.path_of(name);
        let Value::List(items) = &node.value else {
            let given = node.value.describe();
            let problem = match &node.value {
                Value::Text(text) => format!("is {given}; right is a list: [{text:?}]"),
                _ => format!("is {given}; right is a list"),
            };
            self.faults.add(path, node.line, problem);
            return Vec::new();
        };
        let indexed = items.iter().enumerate();
        indexed
            .map(|(index, item)| (format!("{path}[{index}]"), item))
            .collect()
    }

    /// As [`Faults::mapping`], for an item of this mapping.
    pub(super) fn item<T>(
        &mut self,
        node: &Node,
        path: String,
        noun: &'static str,
        read: impl FnOnce(&mut Fields<'_, '_>) -> T,
    ) -> Option<T> {
        self.faults.mapping(node, path, noun, read)
    }

    /// Fields of which exactly one is set: a fault of one makes what is said of
    /// the others no news.
    pub(super) fn spoil_together(&mut self, names: &[&str]) {
        let paths: Vec<String> = names.iter().map(|name| self.path_of(name)).collect();
        let spoiled = |path: &String| self.faults.spoiled.iter().any(|at| is_at(at, path));
        if paths.iter().any(spoiled) {
            self.faults.spoiled.extend(paths);
        }
    }

    fn refuse_unknown(&mut self) {
        let entries = self.entries;
        for (key, _) in entries {
            let name = key.name.as_str();
            if self.asked.contains(&name) {
                continue;
            }
            let noun = self.noun;
            let mut problem = format!("{noun} has no field {name:?} in this version of Anyport; ");
            match nearest(name, &self.asked) {
                Some(meant) => {
                    problem += &format!("did you mean {meant}?");
                    let path = self.path_of(meant);
                    self.faults.spoiled.push(path);
                }
                None => problem += &format!("its fields are {}", self.asked.join(", ")),
            }
            let path = self.path_of(name);
            self.faults.add(path, key.line, problem);
        }
    }
}

/// Largest file that a manifest takes in: a chain of certificates has some ten
/// thousand bytes.
const INCLUDED_MAX: u64 = 1 << 20;

fn read_file(manifest: &str, path: &str) -> Result<String, String> {
    let beside = Path::new(manifest).parent().unwrap_or(Path::new(""));
    let path = beside.join(path);
    let cannot =
        |problem: &dyn std::fmt::Display| format!("cannot read {}: {problem}", path.display());
    // A pipe might never end.
    match path.metadata() {
        Ok(found) if !found.is_file() => return Err(cannot(&"it is no file")),
        _ => {}
    }
    let mut text = String::new();
    File::open(&path)
        .and_then(|file| file.take(INCLUDED_MAX + 1).read_to_string(&mut text))
        .map_err(|error| cannot(&error))?;
    if text.len() as u64 > INCLUDED_MAX {
        return Err(cannot(&"it is larger than 1 MiB"));
    }
    Ok(text)
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        Value::Whole(_) | Value::Real(_) | Value::Flag(_) => Err(format!(
            "is {}; right is a text, which here needs quotes",
            value.describe()
        )),
        other => Err(format!("is {}; right is a text", other.describe())),
    }
}

/// `a`, `a or b`, `a, b or c`.
fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [others @ .., last] => format!("{} or {last}", others.join(", ")),
    }
}

/// Whether `path` is `outer` or inside it.
pub(super) fn is_at(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}
