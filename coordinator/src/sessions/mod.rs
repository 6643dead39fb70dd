//! The agents that are connected: one session each, the newest wins.
//!
//! [`registry`] knows who is connected and how to reach them; [`hello`] takes in what an agent says when it connects (its
//! sources, the attempts it still works on); [`checks`] asks hosts to test their sources.

pub mod checks;
mod heads;
pub mod hello;
pub mod registry;

use std::sync::Arc;

use sealift_common::id::AgentId;

pub use crate::config::SessionSettings;
use crate::core::Core;
use crate::recovery::Generations;
use crate::runs::Runs;
pub use heads::SaidHead;
pub use hello::{Hello, SaidAttempt, SaidEnd, SaidSource, Welcome};
pub use registry::{Closed, Command, Sessions};

/// What the sessions need of the rest, bundled.
#[derive(Debug, Clone)]
pub struct SessionService {
    pub(crate) core: Core,
    pub(crate) runs: Runs,
    pub(crate) registry: Arc<Sessions>,
    pub(crate) settings: SessionSettings,
    pub(crate) generations: Generations,
}

impl SessionService {
    /// Sessions that work on `runs`.
    pub fn new(
        core: Core,
        runs: Runs,
        registry: Arc<Sessions>,
        settings: SessionSettings,
        generations: Generations,
    ) -> Self {
        Self { core, runs, registry, settings, generations }
    }

    /// Who is connected.
    pub fn registry(&self) -> &Arc<Sessions> {
        &self.registry
    }

    /// How agents are to behave.
    pub fn settings(&self) -> SessionSettings {
        self.settings
    }

    /// Whether this agent is connected here.
    pub fn is_connected(&self, agent: AgentId) -> bool {
        self.registry.is_connected(agent)
    }
}
