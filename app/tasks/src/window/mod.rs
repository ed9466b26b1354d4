//! A window of samples in JSON: its shape, how it is read, and why it is refused. Shared by the tasks whose input is one.

mod error;
mod parse;

pub use error::{Place, WindowError};
pub(crate) use error::{Step, detail};
pub(crate) use parse::{Key, mark_non_finite, syntax, text_of};
pub use parse::{Numbers, WindowKey};

use inferd_model::TensorSpec;

/// What a window looks like: rows, columns, and what each column may hold.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowShape {
    timesteps: usize,
    channels: Vec<Channel>,
}

/// One column of a window.
#[derive(Clone, Debug, PartialEq)]
struct Channel {
    name: String,
    unit: String,
    /// The largest magnitude that is accepted, and what the quantity is called.
    limit: Option<(String, f64)>,
}

impl WindowShape {
    /// That of an input `[1, timesteps, channels]`; `None` when it is not of this form.
    #[must_use]
    pub fn of(input: &TensorSpec) -> Option<Self> {
        let [1, timesteps, _] = input.shape[..] else { return None };
        let names = input.channels.as_ref();
        let channels = input
            .limit_per_channel()
            .into_iter()
            .enumerate()
            .map(|(i, limit)| Channel {
                name: names.and_then(|n| n.names.get(i)).cloned().unwrap_or_else(|| i.to_string()),
                unit: names.and_then(|n| n.units.get(i)).cloned().unwrap_or_default(),
                limit: limit.map(|(quantity, max_abs)| (quantity.to_owned(), max_abs)),
            })
            .collect();
        Some(Self { timesteps: timesteps as usize, channels })
    }

    /// Rows.
    #[must_use]
    pub fn timesteps(&self) -> usize {
        self.timesteps
    }

    /// Columns.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels.len()
    }
}
