//! Every operation there is: its name in the audit, and who may do it.

/// Whom an action is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Whoever reaches the port: what proves the caller is in the message.
    Anyone,
    /// An agent, for itself.
    Agent,
    /// An admin.
    Admin,
    /// The coordinator itself.
    Coordinator,
}

macro_rules! actions {
    ($($subject:ident { $($name:ident = $text:literal),* $(,)? })*) => {
        /// One operation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)] // the audit's name of each says what it is
        pub enum Action { $($($name,)*)* }

        impl Action {
            /// All of them, for tests and documents.
            pub const ALL: &[Self] = &[$($(Self::$name,)*)*];

            /// The action's name in the audit.
            pub const fn as_str(self) -> &'static str {
                match self { $($(Self::$name => $text,)*)* }
            }

            /// Who may do it.
            pub const fn subject(self) -> Subject {
                match self { $($(Self::$name => Subject::$subject,)*)* }
            }
        }
    };
}

actions! {
    Anyone {
        AgentEnroll = "agent.enroll", AgentChallenge = "agent.challenge", AgentRecover = "agent.recover",
        CaShow = "ca.show",
    }
    Agent {
        CertificateRenew = "certificate.renew", SessionOpen = "session.open", SeriesAhead = "series.ahead",
        BackupBegin = "backup.begin", PackAuthorize = "pack.authorize", PackConfirm = "pack.confirm",
        IndexRead = "index.read", BackupPrepare = "backup.prepare", BackupCommit = "backup.commit",
        AttemptAnswer = "attempt.answer", AttemptFail = "attempt.fail",
    }
    Admin {
        TokenCreate = "token.create", TokenList = "token.list", TokenRevoke = "token.revoke",
        AgentList = "agent.list", AgentShow = "agent.show", AgentLabel = "agent.label", AgentRevoke = "agent.revoke",
        AgentApprove = "agent.approve", AgentRetire = "agent.retire",
        SeriesList = "series.list", SeriesShow = "series.show", SeriesRename = "series.rename", SeriesEpoch = "series.epoch",
        SourceList = "source.list", SourceTest = "source.test",
        TrustShow = "trust.show", TrustSet = "trust.set",
        RunStart = "run.start", RunList = "run.list", RunShow = "run.show", RunCancel = "run.cancel",
        BackupList = "backup.list", BackupShow = "backup.show", BackupVerify = "backup.verify",
        BackupDelete = "backup.delete", BackupUndelete = "backup.undelete", BackupHold = "backup.hold",
        BackupRelease = "backup.release", RetentionPlan = "retention.plan",
        RestoreOpen = "restore.open", RestoreSign = "restore.sign", RestoreClose = "restore.close",
        PolicyApply = "policy.apply", PolicyPreview = "policy.preview", PolicyList = "policy.list",
        PolicyShow = "policy.show", PolicyRollback = "policy.rollback", PolicyDelete = "policy.delete",
        SchedulePause = "schedule.pause", ScheduleResume = "schedule.resume", ScheduleShow = "schedule.show",
        FleetStatus = "fleet.status", AuditList = "audit.list",
        CoordinatorBackup = "coordinator.backup", CoordinatorRecover = "coordinator.recover",
    }
    Coordinator {
        AdminIssue = "admin.issue", CaReset = "ca.reset", CallRefuse = "call.refuse", StorageProbe = "storage.probe", AttemptLose = "attempt.lose",
        DispatchPause = "dispatch.pause", DispatchResume = "dispatch.resume",
        PromiseBreak = "promise.break", PromiseKeep = "promise.keep",
        RunFinish = "run.finish", BackupResolve = "backup.resolve", BackupDamage = "backup.damage",
        BackupExpire = "backup.expire", BackupRemove = "backup.remove", SeriesCollect = "series.collect",
        SeriesHalt = "series.halt",
        RecoveryNotice = "recovery.notice",
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_has_a_name_of_its_own() {
        let mut names: Vec<_> = Action::ALL.iter().map(|action| action.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Action::ALL.len());
        let well_formed = |name: &&str| {
            name.split_once('.').is_some_and(|(noun, verb)| !noun.is_empty() && !verb.is_empty())
        };
        assert!(names.iter().all(well_formed));
    }
}
