//! The agents that are connected: one session each, the newest wins, on whatever coordinator.
//!
//! [`registry`] knows who is connected and how to reach them; [`hello`] takes in what an agent says when it connects (its
//! sources, the attempts it still works on); [`checks`] asks hosts to test their sources; [`relay`] reaches agents that are
//! connected to other coordinators; [`protocol`] agrees with each on what is spoken; [`presence`] keeps what the database says of coordinators and sessions true.

pub mod checks;
mod heads;
pub mod hello;
pub mod presence;
mod protocol;
pub mod registry;
pub mod relay;

use std::sync::Arc;

use sealift_common::id::AgentId;
use sealift_common::protocol::Spoken;

pub use crate::config::SessionSettings;
use crate::core::Core;
use crate::recovery::Generations;
use crate::runs::Runs;
use presence::Presence;
use relay::Relay;

pub use heads::SaidHead;
pub use hello::{Hello, SaidAttempt, SaidEnd, SaidSource, Welcome};
pub use registry::{Closed, Command, Sessions};

/// What the sessions need of the rest, bundled.
#[derive(Debug, Clone)]
pub struct SessionService {
    pub(crate) core: Core,
    pub(crate) runs: Runs,
    pub(crate) registry: Arc<Sessions>,
    pub(crate) relay: Relay,
    pub(crate) presence: Presence,
    pub(crate) settings: SessionSettings,
    pub(crate) generations: Generations,
    pub(crate) speaks: Spoken,
}

impl SessionService {
    /// Sessions that work on `runs`.
    pub fn new(
        core: Core,
        runs: Runs,
        registry: Arc<Sessions>,
        settings: SessionSettings,
        generations: Generations,
        address: &str,
    ) -> Self {
        let relay = Relay::new(core.clone(), registry.clone());
        let presence = Presence::new(core.clone(), registry.clone(), address);
        let speaks = Spoken::of_this_build();
        Self { core, runs, registry, relay, presence, settings, generations, speaks }
    }

    /// Reaches agents wherever they are connected.
    pub fn relay(&self) -> &Relay {
        &self.relay
    }

    /// This coordinator among the others.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Who is connected.
    pub fn registry(&self) -> &Arc<Sessions> {
        &self.registry
    }

    /// How agents are to behave.
    pub fn settings(&self) -> SessionSettings {
        self.settings
    }

    /// Whether this agent is connected to any coordinator.
    pub fn is_connected(&self, agent: AgentId) -> bool {
        self.registry.is_connected_anywhere(agent)
    }
}
