//! One pulse per stage. A stage beats when it has made progress or has looked and found nothing to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Given to one stage; cheap to clone and to beat.
#[derive(Debug, Clone)]
pub struct Pulse {
    start: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Pulse {
    /// Says "alive" at this moment.
    pub fn beat(&self) {
        self.beat_at(crate::clock::now());
    }

    fn beat_at(&self, now: Instant) {
        self.last_ms.store(crate::clock::ms(now - self.start), Ordering::Relaxed);
    }
}

/// All pulses, held by health.
#[derive(Debug, Clone)]
pub struct Pulses {
    start: Instant,
    stages: Vec<(&'static str, Pulse)>,
}

impl Pulses {
    /// No stages yet.
    pub fn new(start: Instant) -> Self {
        Pulses { start, stages: Vec::new() }
    }

    /// Registers a stage, which counts as alive from `start` on.
    pub fn register(&mut self, stage: &'static str) -> Pulse {
        let pulse = Pulse { start: self.start, last_ms: Arc::default() };
        self.stages.push((stage, pulse.clone()));
        pulse
    }

    /// How long each stage has been silent.
    pub fn ages(&self, now: Instant) -> Vec<(&'static str, Duration)> {
        let now_ms = crate::clock::ms(now - self.start);
        let age = |p: &Pulse| Duration::from_millis(now_ms.saturating_sub(p.last_ms.load(Ordering::Relaxed)));
        self.stages.iter().map(|(stage, p)| (*stage, age(p))).collect()
    }

    /// Stages that have been silent for longer than `silence_max`.
    pub fn silent(&self, now: Instant, silence_max: Duration) -> Vec<&'static str> {
        self.ages(now).into_iter().filter(|(_, age)| *age > silence_max).map(|(stage, _)| stage).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_stops_beating_is_named() {
        let t0 = crate::clock::now();
        let mut pulses = Pulses::new(t0);
        let (receive, _infer) = (pulses.register("receive"), pulses.register("infer"));
        let at = |s| t0 + Duration::from_secs(s);
        receive.beat_at(at(20));
        assert_eq!(pulses.silent(at(25), Duration::from_secs(10)), ["infer"]);
        assert!(pulses.silent(at(25), Duration::from_secs(30)).is_empty());
    }
}
