use super::*;
use std::{io::BufRead as _, os::unix::net::UnixStream};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What was seen: changes of the LED, wishes, and how often the machine woke up. Times in milliseconds.
type Seen = (Vec<(u64, bool)>, Vec<(u64, Wish)>, usize);

/// Presses (time, down) while the appliance looks like this; every change of the LED and every wish, with its time in ms.
fn played(look: Look, presses: &[(u64, bool)], until: u64) -> Seen {
    let mut machine = Machine::new(ms(0));
    let (mut led, mut wishes, mut wakes) = (Vec::new(), Vec::new(), 0);
    let mut presses = presses.iter().copied().peekable();
    let mut now = ms(0);
    while now < ms(until) {
        let step = machine.tick(now, || look);
        wakes += 1;
        let at = u64::try_from(now.as_millis()).unwrap();
        led.extend(step.led.map(|on| (at, on)));
        wishes.extend(step.wish.map(|w| (at, w)));
        let wake = machine.wake();
        assert!(wake > now, "it does not spin");
        now = wake;
        if let Some((at, down)) = presses.next_if(|(at, _)| ms(*at) <= wake) {
            now = ms(at);
            wishes.extend(machine.button(down, now).map(|w| (at, w)));
        }
    }
    (led, wishes, wakes)
}

#[test]
fn every_look_has_its_pattern_and_no_two_the_same() {
    for look in Look::ALL {
        let pattern = look.pattern();
        assert!(pattern.len().is_multiple_of(2) && pattern.iter().all(|n| *n >= 50));
        assert_eq!(Look::ALL.iter().filter(|l| l.pattern() == pattern).count(), 1);
        let whole: u64 = pattern.iter().map(|n| u64::from(*n)).sum();
        let (led, wishes, wakes) = played(look, &[], 3 * whole);
        let mut at = 0;
        let wanted: Vec<(u64, bool)> = pattern
            .iter()
            .cycle()
            .take(3 * pattern.len())
            .enumerate()
            .map(|(i, n)| {
                let edge = (at, i % 2 == 0);
                at += u64::from(*n);
                edge
            })
            .collect();
        assert_eq!(led, wanted, "{look:?}");
        assert!(wishes.is_empty());
        assert_eq!(wakes, wanted.len(), "one wake-up per edge");
    }
}

#[test]
fn a_press_asks_for_the_status_or_the_reset_or_nothing() {
    for (held, wish) in [
        (30, Some(Wish::Status)),
        (1999, Some(Wish::Status)),
        (2000, None),
        (4999, None),
        (5001, None),
        (9999, None),
        (10_001, Some(Wish::FactoryReset)),
        (60_000, Some(Wish::FactoryReset)),
    ] {
        let (_, wishes, _) = played(Look::Healthy, &[(1000, true), (1000 + held, false)], 80_000);
        assert_eq!(wishes.iter().map(|(_, w)| *w).collect::<Vec<_>>(), Vec::from_iter(wish), "{held} ms");
        if wish == Some(Wish::FactoryReset) {
            assert_eq!(wishes[0].0, 11_000, "at ten seconds, not when it is let go");
        }
    }
}

#[test]
fn the_led_warns_before_a_reset_and_no_longer_when_the_button_is_let_go() {
    let (led, wishes, _) = played(Look::Healthy, &[(1000, true), (8000, false)], 14_000);
    assert!(wishes.is_empty());
    let edges = |from: u64, to: u64| led.iter().filter(|(at, _)| (from..to).contains(at)).count();
    assert!(edges(1000, 6000) <= 4, "not yet");
    assert!(edges(6000, 8000) >= 30, "fast");
    assert!(edges(8200, 14_000) <= 5, "no longer");
    assert_eq!(led.iter().find(|(at, _)| *at >= 6000).unwrap().0, 6000, "at once");
}

#[test]
fn presses_one_after_the_other_are_each_their_own() {
    let presses = [(0, true), (6000, false), (7000, true), (12_500, false), (13_000, true), (13_100, false)];
    let (_, wishes, _) = played(Look::Booting, &presses, 30_000);
    assert_eq!(wishes, [(13_100, Wish::Status)], "two times six seconds are no ten");
    let twice = [(0, true), (100, true), (200, false), (300, false)];
    assert_eq!(played(Look::Booting, &twice, 1000).1, [(200, Wish::Status)]);
}

#[test]
fn the_simulated_panel_shows_the_led_and_takes_the_button() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("panel");
    let (told, wishes) = std::sync::mpsc::channel();
    let (show, shown) = std::sync::mpsc::channel();
    let rooms = Rooms {
        look: Box::new(|| Look::Healthy),
        shows: Box::new(move |look| show.send(look).unwrap()),
        wish: Box::new(move |wish| told.send(wish).unwrap()),
    };
    let panel = Panel::start(&Wanted::Simulated(path.clone()), rooms).unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    let mut lines = std::io::BufReader::new(stream.try_clone().unwrap()).lines();
    let seen: Vec<String> = lines.by_ref().take(3).map(Result::unwrap).collect();
    assert!(seen.iter().all(|l| l == "led 0" || l == "led 1"), "{seen:?}");
    assert!(seen[1] != seen[2]);
    std::io::Write::write_all(&mut stream, b"nonsense\npress\nrelease\n").unwrap();
    assert_eq!(wishes.recv_timeout(Duration::from_secs(30)), Ok(Wish::Status));
    drop(panel);
    assert_eq!(shown.iter().collect::<Vec<_>>(), [Look::Healthy], "told once, not with every pattern");
    while path.exists() {
        std::thread::yield_now();
    }
}
