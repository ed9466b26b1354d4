use super::*;

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn engine(model: &str, finished: u64) -> Engine {
    Engine { model: model.into(), finished, busy: false, condition: Condition::Serving, deadline: at(1) }
}

fn supervised(model: &str, finished: u64) -> Engine {
    Engine { condition: Condition::Supervised, ..engine(model, finished) }
}

fn judge() -> Judge {
    Judge::new(Limits::new(None), at(0), false)
}

/// A judge whose endpoint answers every three seconds until `until`, which it looks at.
fn runs(judge: &mut Judge, from: u64, until: u64, mut look: impl FnMut(u64) -> Vec<Engine>) -> Judgement {
    let mut last = None;
    for now in (from..=until).step_by(3) {
        judge.http(at(now), Http::Answered(200));
        let engines = look(now);
        judge.engines(at(now), &engines);
        last = Some(judge.judge(at(now)));
    }
    last.unwrap()
}

#[test]
fn an_endpoint_that_answers_others_is_busy_for_a_minute_and_then_not_there() {
    let mut judge = Judge::new(Limits::new(None), Duration::ZERO, false);
    judge.http(at(1), Http::Answered(200));
    for now in [2, 30, 60] {
        judge.http(at(now), Http::Busy);
        assert!(judge.judge(at(now)).progress, "{now}");
    }
    judge.http(at(61), Http::Busy);
    let found = judge.judge(at(61));
    assert!(!found.progress);
    assert_eq!(found.why_not(), "the endpoint answers others, but GET /livez has waited for 60 s");
    judge.http(at(62), Http::Answered(200));
    assert!(judge.judge(at(62)).progress);
}

#[test]
fn nothing_is_proved_before_the_endpoint_answered() {
    let mut judge = judge();
    assert!(!judge.judge(at(0)).progress);
    judge.http(at(1), Http::Answered(503));
    assert!(judge.judge(at(1)).progress, "any status is an answer");
}

#[test]
fn an_endpoint_that_is_silent_is_named_with_its_time() {
    let mut judge = judge();
    judge.http(at(3), Http::Answered(200));
    judge.http(at(9), Http::Silent("no answer within 5 s".into()));
    let found = judge.judge(at(9));
    assert!(!found.progress);
    assert_eq!(found.why_not(), "the endpoint has not answered GET /livez for 6 s: no answer within 5 s");
    judge.http(at(12), Http::TurnedAway);
    assert!(judge.judge(at(12)).progress, "a full endpoint is not a hung one");
}

#[test]
fn an_address_that_left_the_machine_resets_nothing() {
    let mut judge = judge();
    judge.http(at(3), Http::NoAddress);
    assert!(judge.judge(at(3)).progress);
}

#[test]
fn without_models_there_is_nothing_to_prove() {
    let found = runs(&mut judge(), 0, 3600, |_| Vec::new());
    assert!(found.progress && found.inference.ok);
    assert!(found.inference.sentence.contains("nothing to prove"));
}

#[test]
fn models_that_all_stand_still_withhold_the_watchdog_after_the_budget() {
    let mut judge = judge();
    let stuck = |_| vec![Engine { busy: true, ..engine("a", 7) }, engine("b", 0)];
    assert!(runs(&mut judge, 0, 117, stuck).progress);
    let found = runs(&mut judge, 120, 123, stuck);
    assert!(!found.progress);
    assert_eq!(found.why_not(), "no model has finished an inference or a self-test for 123 s: a, b");
}

#[test]
fn one_model_that_gets_on_is_enough() {
    let found = runs(&mut judge(), 0, 3600, |now| {
        vec![Engine { busy: true, ..engine("a", 7) }, engine("b", now / 60)]
    });
    assert!(found.progress, "{found:?}");
}

#[test]
fn a_model_that_is_restarted_again_and_again_is_supervised() {
    let found = runs(&mut judge(), 0, 3600, |_| vec![supervised("a", 3)]);
    assert!(found.progress && found.inference.sentence.contains("supervisor"));
    // Its time begins when it serves, whatever it was before.
    let mut judge = judge();
    let between = |now: u64| if now < 600 { vec![supervised("a", 3)] } else { vec![engine("a", 3)] };
    assert!(runs(&mut judge, 0, 699, between).progress);
    assert!(!runs(&mut judge, 702, 801, between).progress);
}

#[test]
fn a_supervised_model_does_not_speak_for_one_that_stands_still() {
    let found = runs(&mut judge(), 0, 150, |_| vec![engine("a", 1), supervised("b", 0)]);
    assert!(!found.progress);
    assert!(found.why_not().ends_with(": a"), "{}", found.why_not());
}

#[test]
fn a_model_with_a_long_deadline_has_that_long_unless_a_budget_was_set() {
    let slow = |_| vec![Engine { busy: true, deadline: at(300), ..engine("slow", 0) }];
    assert!(runs(&mut judge(), 0, 327, slow).progress);
    assert!(!runs(&mut judge(), 0, 330, slow).progress);
    let mut strict = Judge::new(Limits::new(Some(at(10))), at(0), false);
    assert!(!runs(&mut strict, 0, 12, slow).progress, "what the operator said counts");
}

#[test]
fn a_model_that_comes_back_proves_progress_again() {
    let mut judge = judge();
    assert!(!runs(&mut judge, 0, 150, |_| vec![engine("a", 1)]).progress);
    assert!(runs(&mut judge, 153, 153, |_| vec![engine("a", 2)]).progress);
}

#[test]
fn an_unloaded_model_is_forgotten() {
    let mut judge = judge();
    assert!(!runs(&mut judge, 0, 150, |_| vec![engine("a", 1)]).progress);
    assert!(runs(&mut judge, 153, 153, |_| Vec::new()).progress);
}

#[test]
fn a_self_test_is_due_only_when_nothing_was_finished_and_nothing_is_under_way() {
    let mut judge = judge();
    assert!(judge.engines(at(0), &[engine("a", 0)]).is_empty());
    assert!(judge.engines(at(29), &[engine("a", 0)]).is_empty());
    assert_eq!(judge.engines(at(30), &[engine("a", 0)]), ["a"]);
    assert!(judge.engines(at(33), &[Engine { busy: true, ..engine("a", 0) }]).is_empty(), "it runs");
    assert!(judge.engines(at(36), &[engine("a", 1)]).is_empty(), "it has ended");
    assert!(judge.engines(at(60), &[engine("a", 1)]).is_empty());
    assert_eq!(judge.engines(at(66), &[engine("a", 1)]), ["a"]);
    assert!(judge.engines(at(99), &[supervised("a", 1)]).is_empty(), "who does not serve is not asked");
}

#[test]
fn a_short_budget_leaves_room_for_several_self_tests() {
    assert_eq!(Limits::new(Some(at(8))).test_every, at(2));
    assert_eq!(Limits::new(Some(at(600))).test_every, TEST_EVERY);
}

#[test]
fn a_full_or_read_only_disk_is_an_alarm_and_a_hanging_one_is_none() {
    let mut judge = judge();
    let answers = |judge: &mut Judge, now| {
        judge.http(at(now), Http::Answered(200));
        judge.judge(at(now))
    };
    judge.storage(at(1), Storage::Begun);
    judge.storage(at(1), Storage::Failed("it is full".into()));
    let full = answers(&mut judge, 1000);
    assert!(full.progress && !full.storage.ok, "{full:?}");
    assert_eq!(full.storage.sentence, "it is full");
    judge.storage(at(1000), Storage::Begun);
    judge.storage(at(1012), Storage::Done);
    assert!(answers(&mut judge, 1015).storage.ok, "a slow disk is a good one");
    judge.storage(at(2000), Storage::Begun);
    assert!(answers(&mut judge, 2060).progress);
    let hung = answers(&mut judge, 2061);
    assert!(!hung.progress);
    assert_eq!(hung.why_not(), "a write to the data directory has not come back for 61 s");
    judge.storage(at(2070), Storage::Done);
    assert!(answers(&mut judge, 2070).progress);
    assert_eq!(answers(&mut judge, 2070).storage_writes, 3);
}

#[test]
fn healthy_is_said_once_after_a_minute_without_a_gap() {
    let mut judge = judge();
    let mut said = Vec::new();
    for now in (0..300).step_by(3) {
        let silent = (30..36).contains(&now);
        judge.http(at(now), if silent { Http::Silent("x".into()) } else { Http::Answered(200) });
        if judge.judge(at(now)).just_healthy {
            said.push(now);
        }
    }
    assert_eq!(said, [96], "a minute after the gap ended at 36");
    assert!(judge.judge(at(400)).healthy);
}

#[test]
fn safe_mode_is_not_called_healthy_until_it_is_over() {
    let mut judge = Judge::new(Limits::new(None), at(0), true);
    let found = runs(&mut judge, 0, 300, |_| Vec::new());
    assert!(found.progress && !found.healthy);
    judge.safe_mode_is_over();
    assert!(runs(&mut judge, 303, 306, |_| Vec::new()).healthy);
}

#[test]
fn what_is_shown_grows_old_by_itself() {
    let shown = Shown::default();
    assert_eq!(shown.view(), None);
    let mut judge = judge();
    judge.http(at(5), Http::Answered(200));
    shown.publish(judge.judge(at(7)));
    let view = shown.view().unwrap();
    assert!(view.proved && view.http.age_s.unwrap() >= 2.0);
}
