//! The model's outputs as the seed's clients read them.

use super::{ImuPlan, MotifHead};
use crate::NotFinite;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

/// The clients' contract: a latent value is within this magnitude, whatever the network says. The Open Inference Protocol
/// gives the values as they are.
pub const LATENT_CLIP: f32 = 10.0;

/// One answer, still in the slot; of the outputs nothing is copied until it is written.
#[derive(Clone, Debug)]
pub struct Answer<'a> {
    latent: &'a [f32],
    scores: Scores<'a>,
}

#[derive(Clone, Debug)]
enum Scores<'a> {
    Output(&'a [f32]),
    Linear(Vec<f32>),
    Zeros(usize),
}

impl ImuPlan {
    /// Takes the outputs of one inference; `output(i)` is output `i` of the manifest as FP32.
    ///
    /// # Errors
    /// [`NotFinite`] when an output this answer is made of is missing, short, or holds NaN or an infinity.
    pub fn answer<'a>(
        &'a self,
        output: impl Fn(usize) -> Option<&'a [f32]>,
    ) -> Result<Answer<'a>, NotFinite> {
        let take = |index: usize, len: usize| {
            let values = output(index).filter(|v| v.len() == len).ok_or(NotFinite)?;
            if values.iter().all(|v| v.is_finite()) { Ok(values) } else { Err(NotFinite) }
        };
        let latent = take(self.latent, self.latent_len)?;
        let scores = match &self.motif {
            MotifHead::Output { index, labels } => Scores::Output(take(*index, labels.len())?),
            MotifHead::Linear { head, .. } => {
                let scores: Vec<f32> = head.scores(latent).collect();
                if !scores.iter().all(|v| v.is_finite()) {
                    return Err(NotFinite);
                }
                Scores::Linear(scores)
            }
            MotifHead::None { zeros } => Scores::Zeros(*zeros),
        };
        Ok(Answer { latent, scores })
    }
}

impl Answer<'_> {
    /// The latent as `/infer` gives it: clipped to [`LATENT_CLIP`].
    pub fn latent(&self) -> impl Iterator<Item = f32> + '_ {
        self.latent.iter().map(|v| v.clamp(-LATENT_CLIP, LATENT_CLIP))
    }

    /// How many latent values the clipping changed.
    #[must_use]
    pub fn clipped(&self) -> usize {
        self.latent.iter().filter(|v| v.abs() > LATENT_CLIP).count()
    }

    /// The motif scores, each in [0, 1].
    pub fn scores(&self) -> impl Iterator<Item = f32> + '_ {
        let len = match &self.scores {
            Scores::Output(s) => s.len(),
            Scores::Linear(s) => s.len(),
            Scores::Zeros(n) => *n,
        };
        (0..len).map(|k| match &self.scores {
            Scores::Output(s) => s[k].clamp(0.0, 1.0),
            Scores::Linear(s) => s[k],
            Scores::Zeros(_) => 0.0,
        })
    }

    /// The latent as the model gave it.
    #[must_use]
    pub fn latent_as_is(&self) -> &[f32] {
        self.latent
    }

    /// `{"latent":[...],"motif_scores":[...]}`, each number in its shortest form that reads back as the same FP32.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        struct Body<'a, 'b>(&'a Answer<'b>);
        impl Serialize for Body<'_, '_> {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let mut map = to.serialize_map(Some(2))?;
                map.serialize_entry("latent", &Numbers(|| self.0.latent()))?;
                map.serialize_entry("motif_scores", &Numbers(|| self.0.scores()))?;
                map.end()
            }
        }
        self.written(&Body(self))
    }

    /// `{"latent_embedding":[...],"model_version":..,"accuracy":..}`, what the seed's deployment guide asks of `/encode`.
    #[must_use]
    pub fn to_encode_json(&self, model_version: &str, accuracy: Option<f64>) -> Vec<u8> {
        struct Body<'a, 'b>(&'a Answer<'b>, &'a str, Option<f64>);
        impl Serialize for Body<'_, '_> {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let mut map = to.serialize_map(Some(3))?;
                map.serialize_entry("latent_embedding", &Numbers(|| self.0.latent()))?;
                map.serialize_entry("model_version", self.1)?;
                map.serialize_entry("accuracy", &self.2)?;
                map.end()
            }
        }
        self.written(&Body(self, model_version, accuracy))
    }

    fn written(&self, body: &impl Serialize) -> Vec<u8> {
        // 16 bytes hold any shortest FP32 with its comma, and the rest the keys: one allocation.
        let mut out = Vec::with_capacity(128 + 16 * (self.latent.len() + self.scores().size_hint().0));
        serde_json::to_writer(&mut out, body).expect("numbers and strings can be written to memory");
        out
    }
}

/// A JSON array of what the function yields.
struct Numbers<F>(F);

impl<I: Iterator<Item = f32>, F: Fn() -> I> Serialize for Numbers<F> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq((self.0)())
    }
}
