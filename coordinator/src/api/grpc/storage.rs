//! What the fleet's backups take, for admins.

use sealift_common::selector::Selector;
use sealift_proto::v1;
use sealift_proto::v1::storage_admin_server::StorageAdmin;
use tonic::{Request, Response, Status};

use super::{Gate, convert};
use crate::audit::Action;
use crate::core::Core;
use crate::store::lists::usage::{self, By, Usage};

/// Usage of the bucket.
#[derive(Debug, Clone)]
pub struct StorageApi {
    /// Who calls.
    pub gate: Gate,
    /// The database.
    pub core: Core,
}

fn to_wire(usage: Usage) -> v1::Usage {
    v1::Usage {
        name: usage.name,
        id: usage.id,
        hosts: usage.hosts,
        series: usage.series,
        backups: usage.backups,
        packs: usage.packs,
        stored_bytes: usage.stored_bytes,
        raw_bytes: usage.raw_bytes,
    }
}

#[tonic::async_trait]
impl StorageAdmin for StorageApi {
    async fn list_usage(
        &self,
        request: Request<v1::ListUsageRequest>,
    ) -> Result<Response<v1::ListUsageReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        ctx.authorize(Action::FleetStatus, &"storage").await.map_err(Status::from)?;
        let wire = request.into_inner();
        let by = match wire.by() {
            v1::UsageBy::Host => By::Host,
            v1::UsageBy::Series => By::Series,
            v1::UsageBy::Label => By::Label,
            v1::UsageBy::Unspecified => return Err(convert::bad_field("by", "is missing")),
        };
        let selector: Selector = convert::text("selector", &wire.selector)?;
        let paging = convert::paging(wire.page)?;
        let mut conn = self.core.store.reader().await?;
        let page = usage::list(&mut conn, by, &selector, &wire.label, &paging).await?;
        let next = convert::position_to_wire(page.next.as_ref());
        Ok(Response::new(v1::ListUsageReply { usage: page.rows.into_iter().map(to_wire).collect(), next }))
    }
}
