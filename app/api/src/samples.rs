//! `GET /emg/stream`: the samples of a source as they come, as the messages of a WebSocket (`socket.rs`).
//!
//! ```text
//! {"source":"arm","sequence":4000,"t":2.0,"rate_hz":2000,"channels":16,"every":1,"dropped":0,"samples":[[..channels..] ..]}
//! {"source":"arm","sequence":4000,"t":2.0,"rate_hz":2000,"channels":16,"every":20,"dropped":0,"min":[[..]..],"max":[[..]..]}
//! {"source":"arm","state":"stale","reason":"the port is there, and nothing comes","channels":16,"rate_hz":2000}
//! ```
//!
//! Samples are those the source took, before filters and scaling, in the source's own unit, and need no model. `sequence` and `t` (seconds
//! by the sender's clock) are of the first one, and those of a message follow each other. With `every` above 1 a message has, per channel, the least and the
//! greatest of each `every` samples, whose numbers begin at a multiple of `every`: the outline of the signal in a bounded number of
//! bytes. The state of the source comes first and whenever it changes. A client that reads slower than samples come misses the oldest:
//! `dropped` is how many, since the message before.

use crate::infer::{Failure, Wording, refuse};
use crate::sources::{Live, pick};
use crate::{App, Reply, Req, query, socket, stream};
use bytes::Bytes;
use inferd_sources::Micros;
use inferd_sources::live::{Block, State};
use inferd_tasks::form::{Form, FormError};
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::mpsc;

/// The fields of its query.
const FIELDS: &[&str] = &["emg_mode", "block_ms", "every"];
/// Between two messages, unless the client says otherwise.
const BLOCK_MS: i64 = 50;
/// Values of one message: some 100 KiB of text.
const MOST_VALUES: usize = 1 << 13;

/// `GET /emg/stream`.
pub(crate) fn socket(app: &Arc<App>, req: &Req) -> Reply {
    socket::answer(app, req, || open(app, req).map_err(|failure| refuse(app, &failure, Wording::Infer)))
}

fn open(app: &Arc<App>, req: &Req) -> Result<(mpsc::Receiver<Bytes>, stream::Place), Failure> {
    let form: Form = query::read(req, FIELDS)?;
    let number = |field, least, most, usual| -> Result<u64, FormError> {
        let given = form.whole(field, least, most)?.unwrap_or(usual);
        Ok(u64::try_from(given).unwrap_or(1))
    };
    let block = number("block_ms", 10, 1000, BLOCK_MS)?;
    let every = number("every", 1, 10_000, 1)?;
    if app.sources.get().is_none_or(Vec::is_empty) && !form.has("emg_mode") {
        return Err(Failure::Source(stream::NO_SOURCE.to_owned()));
    }
    let live = Arc::clone(pick(app, form.text("emg_mode")?, None)?);
    let place = app.streams.take(req.peer.ip())?;
    // One: what is not taken stays in the ring, and is the first to go.
    let (pieces, out) = mpsc::channel(1);
    tokio::spawn(tell(Arc::clone(app), live, pieces, Duration::from_millis(block), every));
    Ok((out, place))
}

/// A message with samples, or with their outline.
#[derive(Serialize)]
struct Message<'a> {
    source: &'a str,
    sequence: u64,
    t: f64,
    rate_hz: f64,
    channels: usize,
    every: u64,
    dropped: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    samples: Option<Vec<&'a [f32]>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<Vec<&'a [f32]>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<Vec<&'a [f32]>>,
}

/// Tells what comes until the client or the daemon goes.
async fn tell(app: Arc<App>, live: Arc<Live>, pieces: mpsc::Sender<Bytes>, pace: Duration, every: u64) {
    let _counted = stream::Counted::new(&app, |counts| &counts.sample_clients);
    let spec = live.source.spec();
    let (channels, rate_hz) = (spec.channels, spec.rate.hz());
    let mut ending = app.ending.subscribe();
    let mut reader = live.source.reader();
    let mut told: Option<State> = None;
    let mut tick = tokio::time::interval(pace);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let (mut values, mut outline, mut dropped) = (Vec::new(), Outline::new(channels, every, rate_hz), 0);
    loop {
        tokio::select! {
            biased;
            () = pieces.closed() => return,
            _ = ending.wait_for(|ending| *ending) => return,
            _ = tick.tick() => {}
        }
        let view = live.source.view();
        let news = (told != Some(view.state)).then(|| {
            json!({
                "source": live.name(), "state": view.state.name(), "reason": view.reason,
                "channels": channels, "rate_hz": rate_hz,
            })
        });
        // What came before it stopped is told before that it has stopped.
        let at_once = told.is_none() || view.state == State::Live;
        told = Some(view.state);
        let mut later = news.map(|news| Bytes::from(news.to_string()));
        if at_once
            && let Some(news) = later.take()
            && pieces.send(news).await.is_err()
        {
            return;
        }
        loop {
            // Room first: what is not read yet can still be dropped for what is newer.
            let Ok(room) = pieces.reserve().await else { return };
            values.clear();
            let Some(block) = live.source.read(&mut reader, MOST_VALUES / channels, &mut values) else {
                if let Some(news) = later.take() {
                    room.send(news);
                }
                break;
            };
            dropped += block.lost;
            app.stream_counts.samples_dropped.fetch_add(block.lost, Relaxed);
            let mut message = Message {
                source: live.name(),
                sequence: block.sequence,
                t: seconds(block.time),
                rate_hz,
                channels,
                every,
                dropped,
                samples: None,
                min: None,
                max: None,
            };
            let written = if every == 1 {
                message.samples = Some(values.chunks_exact(channels).collect());
                serde_json::to_vec(&message)
            } else {
                outline.take(&block, &values);
                let Some((sequence, t)) = outline.first else { continue };
                (message.sequence, message.t) = (sequence, t);
                message.min = Some(outline.min.chunks_exact(channels).collect());
                message.max = Some(outline.max.chunks_exact(channels).collect());
                serde_json::to_vec(&message)
            };
            outline.told();
            dropped = 0;
            // Names and finite numbers can always be written.
            room.send(written.unwrap_or_default().into());
        }
        if view.state == State::Over {
            return;
        }
    }
}

fn seconds(time: Micros) -> f64 {
    #[allow(clippy::cast_precision_loss)] // a microsecond is kept for 285 years
    let t = time.0 as f64;
    t / 1e6
}

/// The least and the greatest of so many samples each.
struct Outline {
    channels: usize,
    every: u64,
    rate_hz: f64,
    /// Number and time of the first that is whole and not told.
    first: Option<(u64, f64)>,
    min: Vec<f32>,
    max: Vec<f32>,
    /// What is not whole yet: number and time, then the least and the greatest of each channel.
    part: Option<(u64, f64, Vec<f32>, Vec<f32>)>,
}

impl Outline {
    fn new(channels: usize, every: u64, rate_hz: f64) -> Self {
        Self { channels, every, rate_hz, first: None, min: Vec::new(), max: Vec::new(), part: None }
    }

    /// Takes samples; what they leave unfinished waits for the next ones, unless those do not follow.
    fn take(&mut self, block: &Block, values: &[f32]) {
        if block.begins {
            self.part = None;
        }
        for ((i, sample), sequence) in values.chunks_exact(self.channels).enumerate().zip(block.sequence..) {
            let (_, _, min, max) = self.part.get_or_insert_with(|| {
                #[allow(clippy::cast_precision_loss)] // samples of one message
                let t = seconds(block.time) + i as f64 / self.rate_hz;
                (sequence - sequence % self.every, t, sample.to_vec(), sample.to_vec())
            });
            for ((min, max), v) in min.iter_mut().zip(max).zip(sample) {
                (*min, *max) = (min.min(*v), max.max(*v));
            }
            if (sequence + 1).is_multiple_of(self.every)
                && let Some((sequence, t, min, max)) = self.part.take()
            {
                self.first.get_or_insert((sequence, t));
                self.min.extend(min);
                self.max.extend(max);
            }
        }
    }

    /// What was whole has been told.
    fn told(&mut self) {
        self.first = None;
        self.min.clear();
        self.max.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_has_the_least_and_the_greatest_of_samples_whose_numbers_belong_together() {
        let mut outline = Outline::new(2, 4, 1000.0);
        let block = |sequence, begins| Block { sequence, time: Micros(sequence * 1000), lost: 0, begins };
        // Numbers 2 to 6: two of the first four, then three of the next.
        outline.take(&block(2, true), &[1.0, -1.0, 5.0, -7.0, 2.0, 9.0, 3.0, 8.0, 4.0, 7.0]);
        assert_eq!(
            (outline.first, &outline.min[..], &outline.max[..]),
            (Some((0, 0.002)), &[1.0, -7.0][..], &[5.0, -1.0][..])
        );
        outline.told();
        outline.take(&block(7, false), &[-2.0, 10.0]);
        assert_eq!(
            (outline.first, &outline.min[..], &outline.max[..]),
            (Some((4, 0.004)), &[-2.0, 7.0][..], &[4.0, 10.0][..])
        );
        outline.told();
        outline.take(&block(8, false), &[99.0, 99.0]);
        outline.take(&block(20, true), &[0.0; 8]);
        assert_eq!(
            (outline.first, &outline.max[..]),
            (Some((20, 0.02)), &[0.0, 0.0][..]),
            "not across a gap"
        );
    }
}
