//! Balto inside this process, and a client for its HTTP API.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use balto::daemon::{self, ServeOptions};
use reqwest::Method;
use serde_json::{Value, json};

/// A daemon on free ports, over a directory of its choice.
pub(crate) struct Balto {
    pub(crate) client: Client,
    data: PathBuf,
    daemon: JoinHandle<anyhow::Result<ExitCode>>,
}

impl Balto {
    pub(crate) async fn start(directory: &Path) -> anyhow::Result<Self> {
        // Both are open at once, so the ports differ.
        let free =
            [TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?];
        let [api, ops] = [free[0].local_addr()?, free[1].local_addr()?];
        drop(free);
        let (config, data) = (directory.join("balto.toml"), directory.join("data"));
        let settings =
            format!("server.api_listen = \"{api}\"\nserver.ops_listen = \"{ops}\"\nlog.level = \"warn\"\n");
        std::fs::write(&config, settings)?;
        let options = ServeOptions {
            config: Some(config),
            data_dir: Some(data.clone()),
            // Without keys, and with receivers on this machine.
            dev: true,
            ..ServeOptions::default()
        };
        let daemon =
            std::thread::Builder::new().name("balto".to_owned()).spawn(move || daemon::serve(&options))?;
        let client = Client::new(format!("http://{api}/v1"))?;
        while client.get("/event-types").await.is_err() {
            ensure!(!daemon.is_finished(), "Balto ended before it was ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self { client, data, daemon })
    }

    /// Stops the daemon as an operator would, and proves that its files are whole.
    pub(crate) fn stop_and_verify(self) -> anyhow::Result<()> {
        let this_process = rustix::process::getpid();
        rustix::process::kill_process(this_process, rustix::process::Signal::TERM)?;
        self.daemon.join().map_err(|_| anyhow!("Balto panicked"))??;
        let findings = daemon::verify(None, &self.data)?;
        ensure!(findings.is_good, "balto verify: {}", findings.words);
        Ok(())
    }
}

/// A client of the API below this URL.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) api: String,
    http: reqwest::Client,
}

impl Client {
    pub(crate) fn new(api: String) -> anyhow::Result<Self> {
        // It speaks plain HTTP only, but the library asks for this. Balto may have done it before.
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        Ok(Self { api, http: reqwest::Client::builder().no_proxy().build()? })
    }

    /// Status and body of an answer.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        let mut request = self.http.request(method, format!("{}{path}", self.api));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.with_context(|| format!("{path} cannot be reached"))?;
        let (status, text) = (answer.status().as_u16(), answer.text().await?);
        let body = if text.is_empty() { json!(null) } else { serde_json::from_str(&text)? };
        Ok((status, body))
    }

    async fn expect(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        match self.call(method, path, body).await? {
            (200..300, answer) => Ok(answer),
            (status, problem) => bail!("{path}: {status}: {problem}"),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.expect(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        self.expect(Method::POST, path, Some(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        self.expect(Method::PUT, path, Some(&body)).await
    }
}

/// A text member of an answer or an event.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> anyhow::Result<&'a str> {
    value[name].as_str().with_context(|| format!("no `{name}` in {value}"))
}

/// A list member.
pub(crate) fn list<'a>(value: &'a Value, name: &str) -> anyhow::Result<&'a [Value]> {
    Ok(value[name].as_array().with_context(|| format!("no `{name}` in {value}"))?)
}
