//! The EMG form of `POST /infer`, and `POST /infer/{engine}`: a window of muscle signals in, a gesture out, every value a string.
//!
//! A form of `/infer` is what has no `x`: several generations of clients send several sets of optional fields (`app/tasks`), most
//! of which say what these clients expect the model to be. What does not fit is 422; a body without a `window` is answered from a
//! source, where one gives windows, and never from made-up numbers.
//!
//! Other than with an IMU window the form is read before a slot is taken: it names the model.

use crate::http::time_left;
use crate::infer::{ENGINE, Failure, Wording, plain, refuse, rung_header};
use crate::{App, Reply, Req, Stages, Surface, limits, sources};
use hyper::StatusCode;
use inferd_hosts::Served;
use inferd_model::{EngineKind, Task};
use inferd_tasks::emg::{Asks, EmgPlan, FIELDS, asks};
use inferd_tasks::form::{Form, FormError};
use inferd_tasks::window::Numbers;
use std::sync::Arc;
use std::time::Instant;

/// Whether this body of `/infer` is for an EMG model. What could be anything is an IMU mistake where there is none.
pub(crate) fn is_asked_for(app: &App, body: &[u8]) -> bool {
    match asks(body) {
        Asks::Imu => false,
        Asks::Emg => true,
        Asks::Either => models(app).next().is_some(),
    }
}

/// `/infer/{engine}`.
pub(crate) async fn infer_on(app: &App, req: &Req) -> Reply {
    let name = req.path.rsplit('/').next().unwrap_or_default();
    match EngineKind::ALL.into_iter().find(|e| e.name() == name) {
        Some(engine) => infer(app, req, Some(engine)).await,
        None => {
            let harmless = name.len() <= 16 && name.bytes().all(|b| b.is_ascii_alphanumeric());
            let name = if harmless { name } else { "of that name" };
            let all = EngineKind::ALL.map(EngineKind::name).join(", ");
            Reply::refusal(
                StatusCode::NOT_FOUND,
                "not_found",
                &format!("no engine {name}; there are {all}"),
                true,
            )
        }
    }
}

/// The form, answered by this engine where one is asked for.
pub(crate) async fn infer(app: &App, req: &Req, engine: Option<EngineKind>) -> Reply {
    let mut model = String::new();
    match attempt(app, req, engine, &mut model).await {
        Ok(reply) => reply,
        Err(failure) => {
            let reply = refuse(app, &failure, Wording::Infer);
            app.metrics.failed(Surface::Emg, &model, reply.error.unwrap_or("unexpected_error"));
            reply
        }
    }
}

async fn attempt(
    app: &App,
    req: &Req,
    engine: Option<EngineKind>,
    name: &mut String,
) -> Result<Reply, Failure> {
    let received = req.received.elapsed();
    if engine == Some(EngineKind::Tensorrt) && !models(app).any(|m| serves_on(&m, EngineKind::Tensorrt)) {
        return Err(elsewhere(EngineKind::Tensorrt));
    }
    plain(&req.headers)?;
    let deadline = time_left(req.deadline()?, req.received)?;
    let begun = Instant::now();
    let heavy = req.body.len() > limits::HEAVY;
    let form = if heavy {
        let body = req.body.clone();
        tokio::task::spawn_blocking(move || Form::read(&body, FIELDS)).await.map_err(|_| Failure::Lost)??
    } else {
        Form::read(&req.body, FIELDS)?
    };
    let model = choose(app, &form)?;
    model.manifest().name.as_str().clone_into(name);
    if let Some(engine) = engine.filter(|e| !serves_on(&model, *e)) {
        return Err(elsewhere(engine));
    }
    let preprocess = form.truth("preprocess")?.unwrap_or(true);
    let mode = form.text("emg_mode")?;
    let given = form.has("window");
    if !given && mode.is_none() && app.sources.get().is_none_or(Vec::is_empty) {
        let why = "Field required: there is no source on this device";
        return Err(FormError::field("window", "missing", why).into());
    }
    let mut ticket = model.begin(deadline)?;
    // Of the model that will compute, which may be another than a moment ago.
    let personal = app.calibrations.personal(ticket.manifest());
    let plan = Arc::new(EmgPlan::new(ticket.manifest())?.with_personal(personal));
    plan.check(&form)?;
    let numbers = if app.config.compat.lenient_numbers { Numbers::Lenient } else { Numbers::Strict };
    if !given {
        sources::newest(app, mode, &mut ticket, preprocess)?;
        plan.scale(ticket.input_f32_mut(0).ok_or(Failure::Lost)?, preprocess);
    } else if heavy {
        let (plan, body) = (Arc::clone(&plan), req.body.clone());
        let away = tokio::task::spawn_blocking(move || {
            let slot = ticket.input_f32_mut(0).ok_or(Failure::Lost)?;
            plan.parse(&body, slot, numbers, preprocess)?;
            Ok::<_, Failure>(ticket)
        });
        ticket = away.await.map_err(|_| Failure::Lost)??;
    } else {
        let slot = ticket.input_f32_mut(0).ok_or(Failure::Lost)?;
        plan.parse(&req.body, slot, numbers, preprocess)?;
    }
    let parsed = begun.elapsed();
    let begun = Instant::now();
    let outputs = ticket.run().await?;
    let latency = begun.elapsed();
    let begun = Instant::now();
    let rung = outputs.rung();
    if let Some(engine) = engine.filter(|e| rung.engine != *e) {
        return Err(elsewhere(engine));
    }
    let gesture = plan.answer(|i| outputs.output_f32(i))?;
    let (latency, busy) = (latency.as_secs_f64() * 1e3, app.cpu.percent());
    let body = gesture.to_form_json(&plan, latency, busy, &rung.to_string());
    let mut reply = Reply::json_bytes(StatusCode::OK, body);
    if let Some(rung) = outputs.stand_in() {
        reply.headers.insert(ENGINE, rung_header(rung));
    }
    let stages = Stages {
        receive: received,
        parse: parsed,
        serialize: begun.elapsed(),
        total: req.received.elapsed(),
    };
    app.metrics.succeeded(Surface::Emg, name, stages);
    Ok(reply)
}

/// The EMG models, by name.
pub(crate) fn models(app: &App) -> impl Iterator<Item = Arc<Served>> {
    app.hosts.list().into_iter().filter(|m| m.manifest().task == Task::EmgClassifier)
}

pub(crate) fn serves_on(model: &Served, engine: EngineKind) -> bool {
    model.engine().rung.is_some_and(|rung| rung.engine == engine)
}

fn elsewhere(engine: EngineKind) -> Failure {
    Failure::Engine(match engine {
        // The words that clients of the service know.
        EngineKind::Tensorrt => "TensorRT runtime not available".to_owned(),
        other => format!("the model is not served by the engine {} now", other.name()),
    })
}

/// The model a form asks for by its kind of network or its name; without a word about it the default one.
pub(crate) fn choose(app: &App, form: &Form) -> Result<Arc<Served>, Failure> {
    let mut models: Vec<_> = models(app).collect();
    if let Some(i) =
        models.iter().position(|m| app.config.default_model.as_deref() == Some(m.manifest().name.as_str()))
    {
        models.swap(0, i);
    }
    let Some(first) = models.first() else {
        let error = app.hosts.load_errors().into_iter().next();
        let none = || "no model of task emg-classifier is loaded".to_owned();
        return Err(Failure::NoModel(error.map_or_else(none, |(_, reason)| reason)));
    };
    let (field, wanted) = match (form.text("model_type")?, form.text("model_prefix")?) {
        (Some(word), _) => ("model_type", word),
        (None, Some(word)) => ("model_prefix", word),
        (None, None) => return Ok(Arc::clone(first)),
    };
    let bare = |s: &str| -> String {
        s.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).map(|c| c.to_ascii_lowercase()).collect()
    };
    let wanted = bare(wanted);
    let called = |m: &Served| {
        let manifest = m.manifest();
        [manifest.emg.as_ref().map(|e| e.family.clone()), Some(manifest.name.to_string())]
    };
    let found = models.iter().find(|m| called(m).into_iter().flatten().any(|name| bare(&name) == wanted));
    found.cloned().ok_or_else(|| {
        let mut names: Vec<_> =
            models.iter().flat_map(|m| called(m)).flatten().map(|n| format!("'{n}'")).collect();
        names.sort_unstable();
        names.dedup();
        FormError::field(field, "enum", format!("Input should be {}", names.join(", "))).into()
    })
}
