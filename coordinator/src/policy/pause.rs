//! Pauses: schedules of some or all hosts start nothing for a while. What an admin asks for by hand still runs.

use futures::FutureExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::id::PauseId;
use sealift_common::selector::Selector;

use super::{Policies, PolicyError};
use crate::audit::{Action, Details, OpContext};
use crate::store::pauses::{self, PauseRow};

/// Longest reason, in characters.
const MAX_REASON: usize = 500;

impl Policies {
    /// Pauses the schedules of hosts that `selector` matches, `until` then or until somebody ends it.
    ///
    /// # Errors
    /// [`PolicyError::PauseInThePast`], or those of access and database.
    pub async fn pause(
        &self,
        ctx: &OpContext,
        selector: &Selector,
        until: Option<UnixMillis>,
        reason: &str,
    ) -> Result<PauseRow, PolicyError> {
        let now = self.core.clock.now();
        let details = Details::none()
            .with("selector", selector.to_string())
            .with("until", until.map(UnixMillis::rfc3339))
            .with("reason", reason);
        let pause = ctx
            .perform(Action::SchedulePause, &"schedules", details, move |tx, _| {
                async move {
                    if until.is_some_and(|until| until <= now) {
                        return Err(PolicyError::PauseInThePast);
                    }
                    let before = shown(&pauses::in_force(tx, now).await?);
                    let pause = PauseRow {
                        id: PauseId::generate(&self.core.random),
                        selector: selector.clone(),
                        reason: reason.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect(),
                        created: now,
                        created_by: ctx.actor().to_string(),
                        until,
                        ended: None,
                    };
                    pauses::insert(tx, &pause).await?;
                    let after = shown(&pauses::in_force(tx, now).await?);
                    Ok((pause, Details::none().with("before", before).with("after", after)))
                }
                .boxed()
            })
            .await?;
        self.changed();
        Ok(pause)
    }

    /// Ends pauses: those with exactly this selector, or all of them.
    ///
    /// # Errors
    /// [`PolicyError::NotFound`] where there is none, or those of access and database.
    pub async fn resume(
        &self,
        ctx: &OpContext,
        selector: Option<&Selector>,
    ) -> Result<Vec<PauseRow>, PolicyError> {
        let now = self.core.clock.now();
        let details = Details::none().with("selector", selector.map(ToString::to_string));
        let ended = ctx
            .perform(Action::ScheduleResume, &"schedules", details, move |tx, _| {
                async move {
                    let open = pauses::in_force(tx, now).await?;
                    let before = shown(&open);
                    let mut ended = Vec::new();
                    for pause in
                        open.into_iter().filter(|pause| selector.is_none_or(|s| *s == pause.selector))
                    {
                        pauses::end(tx, pause.id, now).await?;
                        ended.push(PauseRow { ended: Some(now), ..pause });
                    }
                    if ended.is_empty() {
                        let of = selector.map_or_else(String::new, |selector| format!(" of {selector:?}"));
                        let hint = if before.is_empty() {
                            String::new()
                        } else {
                            format!("; paused are: {}", before.join("; "))
                        };
                        return Err(PolicyError::NotFound(format!("pause{of}{hint}")));
                    }
                    let after = shown(&pauses::in_force(tx, now).await?);
                    Ok((ended, Details::none().with("before", before).with("after", after)))
                }
                .boxed()
            })
            .await?;
        self.changed();
        Ok(ended)
    }

    /// Pauses in force.
    ///
    /// # Errors
    /// Those of access and database.
    pub async fn pauses(&self, ctx: &OpContext) -> Result<Vec<PauseRow>, PolicyError> {
        ctx.authorize(Action::ScheduleShow, &"schedules").await?;
        let now = self.core.clock.now();
        Ok(pauses::in_force(&mut *self.core.store.reader().await?, now).await?)
    }
}

/// Pauses as the audit and errors name them.
fn shown(pauses: &[PauseRow]) -> Vec<String> {
    pauses.iter().map(ToString::to_string).collect()
}
