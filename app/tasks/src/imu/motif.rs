//! Where motif scores come from.

use inferd_model::LinearHead;

/// The motif head of one model.
#[derive(Clone, Debug, PartialEq)]
pub enum MotifHead {
    /// The network computes the scores itself, in this output.
    Output {
        /// Position among the outputs.
        index: usize,
        /// One label per score.
        labels: Vec<String>,
    },
    /// `sigmoid(W z + b)` over the latent `z`.
    Linear {
        /// `W` and `b`.
        head: LinearHead,
        /// One label per score.
        labels: Vec<String>,
    },
    /// The model has none. Zeros are served because the clients' contract has the field; they are marked as no answer.
    None {
        /// How many.
        zeros: usize,
    },
}

impl MotifHead {
    /// The source's name on the wire: `output`, `linear` or `none`.
    #[must_use]
    pub fn source(&self) -> &'static str {
        match self {
            Self::Output { .. } => "output",
            Self::Linear { .. } => "linear",
            Self::None { .. } => "none",
        }
    }

    /// How many scores there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Output { labels, .. } | Self::Linear { labels, .. } => labels.len(),
            Self::None { zeros } => *zeros,
        }
    }

    /// Whether there are no scores at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One label per score; empty when the scores mean nothing.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        match self {
            Self::Output { labels, .. } | Self::Linear { labels, .. } => labels,
            Self::None { .. } => &[],
        }
    }
}
