//! A storage SCU that behaves like a scanner: one slice after the other at a cadence, one association per study.

use std::net::SocketAddr;
use std::time::Duration;

use ichd::dicom::AeTitle;
use ichd::send::{Association, DataSet, Peer, SendError, Wanted};
use ichd_phantom::Instance;

/// Where and as whom to send.
#[derive(Debug, Clone)]
pub struct Scanner {
    /// Acceptor.
    pub address: SocketAddr,
    /// Our AE title.
    pub calling: String,
    /// Its AE title.
    pub called: String,
    /// Pause between two slices.
    pub cadence: Duration,
}

impl Scanner {
    /// Sends a series over one association, telling `each` after every acknowledged slice.
    pub async fn send(&self, series: &[Instance], mut each: impl FnMut(usize)) -> Result<(), SendError> {
        let Some(first) = series.first() else { return Ok(()) };
        let title = |text: &str| AeTitle::parse(text).map_err(|_| SendError::NoAssociation("no_ae_title"));
        let (calling, called) = (title(&self.calling)?, title(&self.called)?);
        let address = self.address.to_string();
        let peer = Peer { calling: &calling, called: &called, address: &address, tls: None };
        let wanted = Wanted {
            sop_class: first.sop_class_uid.into(),
            transfer_syntaxes: vec![first.transfer_syntax_uid.into()],
        };
        let mut association = Association::open(peer, &[wanted]).await?;
        let result = self.store_all(&mut association, series, &mut each).await;
        association.end(&result).await;
        result
    }

    async fn store_all(
        &self,
        association: &mut Association,
        series: &[Instance],
        each: &mut impl FnMut(usize),
    ) -> Result<(), SendError> {
        let mut next = tokio::time::interval(self.cadence.max(Duration::from_millis(1)));
        for (i, instance) in series.iter().enumerate() {
            if !self.cadence.is_zero() {
                next.tick().await;
            }
            let context = association.accepted(instance.sop_class_uid).next().cloned();
            let context = context.ok_or_else(|| SendError::ClassRefused(instance.sop_class_uid.into()))?;
            let bytes = DataSet::Bytes(&instance.dataset_bytes);
            association.store(&context, &instance.sop_instance_uid, bytes).await?;
            each(i);
        }
        Ok(())
    }
}
