//! One page of `/metrics` for all who wait for one.
//!
//! A page costs milliseconds of a small processor. Sixty clients that ask for it without end would each have their own, one after the
//! other, and everybody else would wait behind them. So a page is given to all who asked before it was begun: nobody gets numbers
//! from before the question, and however many ask, one page is written at a time and the next is for all who wait.

use hyper::body::Bytes;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use tokio::sync::Mutex;

/// The last page, and who it is for.
#[derive(Debug, Default)]
pub(super) struct Pages {
    asked: AtomicU64,
    last: Mutex<Option<Page>>,
}

/// A page in both formats.
#[derive(Clone, Debug)]
pub(super) struct Page {
    /// Questions up to this one came before the page was begun.
    covers: u64,
    pub open_metrics: Bytes,
    pub text: Bytes,
}

impl Pages {
    /// A page that was begun after this call; `write` makes one, when there is none yet.
    pub async fn get<E>(&self, write: impl FnOnce() -> Result<(Bytes, Bytes), E>) -> Result<Page, E> {
        let number = self.asked.fetch_add(1, SeqCst) + 1;
        let mut last = self.last.lock().await;
        if let Some(page) = last.as_ref().filter(|p| p.covers >= number) {
            return Ok(page.clone());
        }
        let covers = self.asked.load(SeqCst);
        let (open_metrics, text) = write()?;
        let page = Page { covers, open_metrics, text };
        *last = Some(page.clone());
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn who_asks_alone_gets_a_page_of_their_own() {
        let (pages, written) = (Pages::default(), Cell::new(0_u8));
        for expected in 1..=3 {
            let page = pages.get(|| write(&written)).await.unwrap();
            assert_eq!(page.text, vec![expected], "never one from before the question");
        }
    }

    #[tokio::test]
    async fn a_crowd_that_asks_at_once_shares_one() {
        let (pages, written) = (Pages::default(), Cell::new(0_u8));
        let held = pages.last.lock().await;
        let mut crowd = Vec::new();
        for _ in 0..60 {
            crowd.push(Box::pin(pages.get(|| write(&written))));
        }
        // All have asked, and wait for their turn.
        for one in &mut crowd {
            assert!(poll(one.as_mut()).is_none());
        }
        drop(held);
        for one in crowd {
            assert_eq!(one.await.unwrap().text, vec![1]);
        }
        assert_eq!(written.get(), 1);
    }

    #[tokio::test]
    async fn a_page_that_cannot_be_written_is_nobodys() {
        let (pages, written) = (Pages::default(), Cell::new(0_u8));
        assert!(pages.get(|| Err::<_, ()>(())).await.is_err());
        assert_eq!(pages.get(|| write(&written)).await.unwrap().text, vec![1]);
    }

    #[allow(clippy::unnecessary_wraps)]
    fn write(written: &Cell<u8>) -> Result<(Bytes, Bytes), ()> {
        written.set(written.get() + 1);
        Ok((Bytes::new(), vec![written.get()].into()))
    }

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }
}
