//! Reading a JSON object field by field. Every field that is asked for is known; what is left over at the end is
//! refused with the nearest known name. Errors name the field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of an object that have not been read yet.
pub struct Fields {
    rest: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// The fields of `value`, which must be an object.
    ///
    /// # Errors
    /// When it is something else.
    pub fn new(value: Value) -> Result<Fields, String> {
        match value {
            Value::Object(rest) => Ok(Fields {
                rest,
                known: Vec::new(),
            }),
            _ => Err("expected a JSON object".into()),
        }
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// When it is missing or of another type.
    pub fn required<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<T, String> {
        self.optional(name)?
            .ok_or_else(|| format!("the field {name:?} is missing"))
    }

    /// A field that takes `default` where it is missing or null.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn or<T: DeserializeOwned>(&mut self, name: &'static str, default: T) -> Result<T, String> {
        Ok(self.optional(name)?.unwrap_or(default))
    }

    /// A field that may be missing or null.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn optional<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, String> {
        self.known.push(name);
        match self.rest.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|e| format!("the field {name:?} is wrong: {e}")),
        }
    }

    /// Check that every field was asked for.
    ///
    /// # Errors
    /// When one was not: it is named, with the known name that is nearest.
    pub fn finish(self) -> Result<(), String> {
        match self.rest.keys().next() {
            None => Ok(()),
            Some(name) => Err(format!(
                "there is no field {name:?}{}",
                did_you_mean(name, self.known.iter().copied())
            )),
        }
    }
}

/// `, did you mean "x"?` with the name nearest to `name`, or nothing where there are no names.
pub fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .min_by_key(|k| strsim::damerau_levenshtein(k, name))
        .map_or_else(String::new, |k| format!(", did you mean {k:?}?"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_read_and_the_rest_is_refused() {
        let mut f =
            Fields::new(json!({"width": 4, "depth": null, "name": "a", "widht": 1})).unwrap();
        assert_eq!(f.required::<usize>("width").unwrap(), 4);
        assert_eq!(f.or("depth", 7usize).unwrap(), 7);
        assert_eq!(
            f.required::<usize>("height").unwrap_err(),
            "the field \"height\" is missing"
        );
        let wrong = f.required::<usize>("name").unwrap_err();
        assert!(
            wrong.starts_with("the field \"name\" is wrong: "),
            "{wrong}"
        );
        assert_eq!(
            f.finish().unwrap_err(),
            "there is no field \"widht\", did you mean \"width\"?"
        );
        assert!(Fields::new(json!([1])).is_err());
    }
}
