//! Answers the coordinator's wish to know whether sources could be backed up.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use sealift_proto::v1;
use sealift_proto::v1::agent_message::Message as Up;

use crate::agent::Agent;
use crate::config::Source;
use crate::source::{self, SourceEnv, whole_chain};

/// Tests the sources that `test` names, one after the other, and sends each result when it is there.
pub async fn answer(agent: &Agent, test: v1::TestSource, outgoing: mpsc::Sender<v1::AgentMessage>) {
    let config = agent.config();
    let chosen: Vec<&Source> = config
        .sources
        .iter()
        .filter(|source| test.source.is_empty() || source.name.as_str() == test.source)
        .collect();
    let env = SourceEnv::open(&config, agent.environment.clone());
    for source in chosen {
        let found = match &env {
            Ok(env) => source::test(source, env, CancellationToken::new()).await,
            Err(error) => source::SourceCheck { detail: whole_chain(error), ..Default::default() },
        };
        let check = v1::SourceCheck {
            source: source.name.to_string(),
            ok: found.ok,
            detail: found.detail,
            tool_version: found.tool_version,
            server_version: found.server_version,
        };
        send(&outgoing, &test.request_id, vec![check], false).await;
    }
    send(&outgoing, &test.request_id, Vec::new(), true).await;
}

async fn send(
    outgoing: &mpsc::Sender<v1::AgentMessage>,
    request: &[u8],
    checks: Vec<v1::SourceCheck>,
    last: bool,
) {
    let result = v1::SourceTestResult { request_id: request.to_vec(), checks, last };
    // Fails where the session is gone: then nobody waits for it.
    let _ = outgoing.send(v1::AgentMessage { message: Some(Up::SourceTest(result)) }).await;
}
