//! TensorBoard event files with scalar curves.
//!
//! An event file is a row of TFRecords, each holding one `Event` message in protocol buffer form:
//!
//! ```text
//! TFRecord: length u64, masked CRC-32C of the length, data, masked CRC-32C of the data      (little endian)
//! Event:    wall_time = 1 (double), step = 2 (int64), file_version = 3 (string),
//!           summary = 5 { value = 1 { tag = 1 (string), simple_value = 2 (float) } },
//!           session_log = 7 { status = 1 (enum, 1 = START) }
//! ```
//!
//! TensorBoard reads all event files of a folder; on a START event it forgets the points from its step on that other
//! files hold, which is how a resumed run rewinds its curves.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::crc32c::masked;
use crate::error::{Error, Result};

/// An event file that scalars are appended to; each call is with the system before it returns.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins a new event file in an existing folder, for a run that starts after `step` finished steps (0 for a new
    /// run, the checkpoint's step for a resumed one).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(folder: impl AsRef<Path>, step: u64) -> Result<Self> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let (seconds, nanos) = (now.as_secs(), now.subsec_nanos());
        let name = format!("events.out.tfevents.{seconds:010}.{nanos:09}.weft");
        let path = folder.as_ref().join(name);
        let file = File::create_new(&path).map_err(Error::io("write", &path))?;
        let mut events = Self { path, file };
        let mut version = Message::event();
        version.bytes(3, b"brain.Event:2");
        events.append(&version)?;
        if step > 0 {
            let mut start = Message::event();
            start.integer(2, step + 1);
            let mut status = Message::default();
            status.integer(1, 1);
            start.message(7, &status);
            events.append(&start)?;
        }
        Ok(events)
    }

    /// Appends the values of one step, each under its tag (a slash groups tags, as in `train/loss`).
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values {
            let mut scalar = Message::default();
            scalar.bytes(1, tag.as_bytes());
            scalar.float(2, *value as f32);
            summary.message(1, &scalar);
        }
        let mut event = Message::event();
        event.integer(2, step);
        event.message(5, &summary);
        self.append(&event)
    }

    fn append(&mut self, event: &Message) -> Result<()> {
        let length = (event.0.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(&length).to_le_bytes());
        record.extend(&event.0);
        record.extend(masked(&event.0).to_le_bytes());
        self.file
            .write_all(&record)
            .map_err(Error::io("write", &self.path))
    }
}

/// A protocol buffer message: fields with their number and wire type in front.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    /// An `Event` of this moment.
    fn event() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut event = Self::default();
        event.key(1, 1);
        event.0.extend(now.as_secs_f64().to_le_bytes());
        event
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn message(&mut self, field: u64, value: &Message) {
        self.bytes(field, &value.0);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    /// Seven bits a byte, lowest first; the high bit says that more follow.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader written from the format's description alone.
    #[derive(Debug, PartialEq)]
    enum Value<'a> {
        Integer(u64),
        Fixed(&'a [u8]),
        Bytes(&'a [u8]),
    }

    fn varint(bytes: &mut &[u8]) -> u64 {
        let end = bytes.iter().position(|b| b & 0x80 == 0).unwrap();
        let (number, rest) = bytes.split_at(end + 1);
        *bytes = rest;
        number
            .iter()
            .rev()
            .fold(0, |value, b| value << 7 | u64::from(b & 0x7F))
    }

    fn fields(mut bytes: &[u8]) -> Vec<(u64, Value<'_>)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    fields.push((key >> 3, Value::Integer(varint(&mut bytes))));
                    continue;
                }
                1 => 8,
                5 => 4,
                2 => varint(&mut bytes) as usize,
                other => panic!("wire type {other}"),
            };
            let (value, rest) = bytes.split_at(length);
            bytes = rest;
            let value = if key & 7 == 2 {
                Value::Bytes(value)
            } else {
                Value::Fixed(value)
            };
            fields.push((key >> 3, value));
        }
        fields
    }

    fn records(mut bytes: &[u8]) -> Vec<&[u8]> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let (length_crc, rest) = rest.split_at(4);
            assert_eq!(length_crc, masked(length).to_le_bytes());
            let size = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            let (data, rest) = rest.split_at(size);
            let (data_crc, rest) = rest.split_at(4);
            assert_eq!(data_crc, masked(data).to_le_bytes());
            records.push(data);
            bytes = rest;
        }
        records
    }

    fn read(folder: &Path) -> Vec<u8> {
        let files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        assert_eq!(files.len(), 1);
        assert!(files[0].to_string_lossy().contains("tfevents"));
        std::fs::read(&files[0]).unwrap()
    }

    #[test]
    fn scalars_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), 0).unwrap();
        events
            .scalars(300, &[("train/loss", 1.25), ("rate", -1e-3)])
            .unwrap();
        let bytes = read(folder.path());
        let records = records(&bytes);
        assert_eq!(records.len(), 2);
        let version = fields(records[0]);
        assert_eq!(version[1], (3, Value::Bytes(b"brain.Event:2")));

        let event = fields(records[1]);
        let (1, Value::Fixed(time)) = event[0] else {
            panic!("{event:?}")
        };
        let time = f64::from_le_bytes(time.try_into().unwrap());
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        assert!((0.0..60.0).contains(&(now - time)), "{time} at {now}");
        assert_eq!(event[1], (2, Value::Integer(300)));
        let (5, Value::Bytes(summary)) = event[2] else {
            panic!("{event:?}")
        };
        let scalar = |(field, value)| match (field, value) {
            (1, Value::Bytes(scalar)) => fields(scalar),
            other => panic!("{other:?}"),
        };
        let values: Vec<_> = fields(summary).into_iter().map(scalar).collect();
        let expected = [(&b"train/loss"[..], 1.25f32), (b"rate", -1e-3)];
        for (value, (tag, number)) in values.iter().zip(expected) {
            assert_eq!(value[0], (1, Value::Bytes(tag)));
            assert_eq!(value[1], (2, Value::Fixed(&number.to_le_bytes())));
        }
        assert_eq!(values.len(), 2);
    }

    #[test]
    fn a_resumed_run_rewinds_the_curves() {
        let folder = tempfile::tempdir().unwrap();
        EventFile::create(folder.path(), 120).unwrap();
        let bytes = read(folder.path());
        let start = fields(records(&bytes)[1]);
        assert_eq!(start[1], (2, Value::Integer(121)));
        assert_eq!(start[2], (7, Value::Bytes(&[0x08, 0x01])));
    }

    #[test]
    fn errors_name_the_file() {
        let error = EventFile::create("/no/such/folder", 0)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/no/such/folder/events.out.tfevents"),
            "{error}"
        );
    }
}
