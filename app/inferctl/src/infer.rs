//! `inferctl infer`: one input through a model, the answer for people.

use crate::{
    client::{Answer, Client, ClientError},
    fail::Failure,
    input::{Form, Request},
    show,
};
use serde_json::Value;
use std::path::PathBuf;

/// How many scores or values are shown.
const TOP: usize = 5;

/// Arguments of `infer`.
#[derive(Debug, clap::Args)]
pub struct Infer {
    /// Input as clients send it: {"x": [[..9] x100]}, an OIP request, or a plain array; `-` is standard input
    file: PathBuf,
    /// The model, by the Open Inference Protocol [default: the daemon's default model, by POST /infer]
    #[arg(long)]
    model: Option<String>,
    /// Use the Open Inference Protocol also for the default model
    #[arg(long)]
    oip: bool,
}

impl Infer {
    /// Asks and shows.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        if self.oip || self.model.is_some() { self.by_oip(client, json) } else { self.by_infer(client, json) }
    }

    fn by_infer(&self, client: &Client, json: bool) -> Result<(), Failure> {
        // The bytes go as they are: what is wrong with them is the server's to say.
        let body = crate::read_input(&self.file)?;
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if value["inputs"].is_array() {
            return self.by_oip(client, json);
        }
        let body = if value.is_array() { format!("{{\"x\":{value}}}").into_bytes() } else { body };
        let headers = [("Content-Type".to_owned(), "application/json".to_owned())];
        let request = Request { path: "/infer".into(), headers: headers.to_vec(), body };
        let (answer, value) = ask(client, &request)?;
        if json {
            show::json(&value);
            return Ok(());
        }
        let contract: Value = client.json("/contract").unwrap_or(Value::Null);
        show::line(&format!("answered in {}", show::micros(answer.took.as_secs_f64() * 1e6)));
        show::line(&motifs(&value, &labels(&contract), answer.header("x-inferd-motif-source")));
        show::line(&latent(&value["latent"]));
        Ok(())
    }

    fn by_oip(&self, client: &Client, json: bool) -> Result<(), Failure> {
        let name = match &self.model {
            Some(name) => name.clone(),
            None => default_model(client)?,
        };
        let model = crate::metadata(client, &name)?;
        let request = crate::read_sample(&self.file)?.to_oip(&model, Form::OipJson)?;
        let (answer, value) = ask(client, &request)?;
        if json {
            show::json(&value);
            return Ok(());
        }
        show::line(&format!(
            "{} {} answered in {}",
            value["model_name"].as_str().unwrap_or(&name),
            value["model_version"].as_str().unwrap_or(""),
            show::micros(answer.took.as_secs_f64() * 1e6)
        ));
        for output in value["outputs"].as_array().into_iter().flatten() {
            show::line(&tensor(output));
        }
        Ok(())
    }
}

/// Sends it and wants 200.
fn ask(client: &Client, request: &Request) -> Result<(Answer, Value), Failure> {
    let answer = client.post(&request.path, &request.headers, &request.body)?;
    let value = answer.json(&request.path)?;
    Ok((answer, value))
}

/// The model behind `/infer`.
fn default_model(client: &Client) -> Result<String, ClientError> {
    let status: Value = client.json("/status")?;
    match status["model_name"].as_str().filter(|name| !name.is_empty()) {
        Some(name) => Ok(name.to_owned()),
        None => Err(ClientError::Refused("the daemon has no default model; name one with --model".into())),
    }
}

/// The labels of motif scores, as `/contract` gives them.
fn labels(contract: &Value) -> Vec<String> {
    ["motif_labels", "labels"]
        .iter()
        .find_map(|key| contract[*key].as_array())
        .into_iter()
        .flatten()
        .map(|label| label.as_str().unwrap_or("?").to_owned())
        .collect()
}

/// The best scores with their labels and a bar each.
fn motifs(answer: &Value, labels: &[String], source: Option<&str>) -> String {
    if source == Some("none") {
        return "motifs  the model has no motif head; its scores are zeros".into();
    }
    let mut scores: Vec<(usize, f64)> = answer["motif_scores"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|score| score.as_f64().unwrap_or(f64::NAN))
        .enumerate()
        .collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    let rows: Vec<Vec<String>> = scores
        .iter()
        .take(TOP)
        .map(|(i, score)| {
            let label = labels.get(*i).cloned().unwrap_or_else(|| format!("motif {i}"));
            vec![label, format!("{score:.3}"), show::bar(*score)]
        })
        .collect();
    show::table(&["motif", "score", ""], &rows)
}

/// What a vector looks like at a glance.
fn latent(vector: &Value) -> String {
    let values: Vec<f64> = vector.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let (min, max) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(*v), b.max(*v)));
    if values.is_empty() {
        return "latent  none".into();
    }
    format!("latent  {} numbers from {min:.3} to {max:.3}, length {norm:.3}; --json shows them", values.len())
}

/// One output of an OIP answer.
fn tensor(output: &Value) -> String {
    let shape: Vec<String> =
        output["shape"].as_array().into_iter().flatten().map(ToString::to_string).collect();
    let data = output["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let shown: Vec<String> = data
        .iter()
        .take(TOP)
        .map(|v| v.as_f64().filter(|_| v.is_f64()).map_or_else(|| v.to_string(), |f| format!("{f:.4}")))
        .collect();
    let more = if data.len() > TOP { ", ..." } else { "" };
    format!(
        "{}  {} {}  [{}{more}]",
        output["name"].as_str().unwrap_or("?"),
        output["datatype"].as_str().unwrap_or("?"),
        shape.join("x"),
        shown.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_best_motifs_come_first_with_their_labels() {
        let answer = json!({"motif_scores": [0.1, 0.9, 0.5]});
        let labels = ["sit".to_owned(), "walk".to_owned()];
        let text = motifs(&answer, &labels, Some("linear"));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("walk") && lines[1].contains("0.900"), "{text}");
        assert!(lines[2].starts_with("motif 2"), "{text}");
        assert!(lines[3].starts_with("sit"), "{text}");
    }

    #[test]
    fn zeros_of_a_model_without_a_head_are_not_shown_as_scores() {
        let answer = json!({"motif_scores": [0.0, 0.0]});
        assert!(motifs(&answer, &[], Some("none")).contains("no motif head"));
    }

    #[test]
    fn vectors_are_summed_up() {
        assert_eq!(
            latent(&json!([3.0, -4.0])),
            "latent  2 numbers from -4.000 to 3.000, length 5.000; --json shows them"
        );
        let output = json!({"name": "y", "datatype": "INT64", "shape": [1, 6], "data": [1, 2, 3, 4, 5, 6]});
        assert_eq!(tensor(&output), "y  INT64 1x6  [1, 2, 3, 4, 5, ...]");
    }
}
