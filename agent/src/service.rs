//! What a service manager wants to hear, and the signals it sends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::Agent;
use crate::config::Config;
use crate::source::whole_chain;

/// Says that the agent works. Without a service manager nobody listens.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Says that the agent is about to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// What `systemctl status` shows.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "cannot tell the service manager");
    }
}

/// Pings the watchdog, where the service manager keeps one, for as long as the runtime is alive.
pub fn keep_watchdog_quiet() {
    let mut limit_us = 0;
    if !sd_notify::watchdog_enabled(false, &mut limit_us) {
        return;
    }
    tokio::spawn(async move {
        let mut ticks =
            tokio::time::interval(Duration::from_micros(limit_us / 2).max(Duration::from_millis(100)));
        loop {
            ticks.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    });
}

/// Reads the configuration again on each SIGHUP. A bad one is reported and changes nothing.
///
/// # Errors
/// When the process may not install signal handlers.
pub fn reload_on_sighup(agent: Arc<Agent>, path: PathBuf) -> std::io::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            if let Ok(now) = NotifyState::monotonic_usec_now() {
                tell(&[NotifyState::Reloading, now]);
            }
            reload(&agent, &path);
            ready();
        }
    });
    Ok(())
}

fn reload(agent: &Agent, path: &std::path::Path) {
    match Config::load(path, &agent.environment) {
        Ok(config) => {
            config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            if config.state_dir.as_path() != agent.config().state_dir.as_path() {
                tracing::warn!("state_dir has changed: that takes a restart");
            }
            if config.spool.dir != agent.config().spool.dir {
                tracing::warn!("[spool] dir has changed: that takes a restart");
            }
            tracing::info!(sources = config.sources.len(), "read the configuration again");
            agent.config.send_replace(Arc::new(config));
        }
        Err(error) => {
            tracing::error!(error = whole_chain(&error), "the configuration stays as it was");
        }
    }
}

/// Gives memory that is free but still held back to the system, where the C library has a way to say so.
#[allow(unsafe_code)]
pub fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer, and touches nothing but the allocator's own free lists, under its locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
