//! TLS to a device that is known by its fingerprint, or by who signed its certificate.

use inferd_tls::rustls::pki_types::ServerName;
use inferd_tls::rustls::{ClientConfig, ClientConnection, StreamOwned};
use inferd_tls::{Fingerprint, Trust};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    fmt,
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

/// How a device is known.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Known {
    /// With https: SHA-256 of the device's certificate, as its log and /status show it
    #[arg(long, global = true, env = "INFERD_FINGERPRINT", value_name = "SHA256")]
    fingerprint: Option<String>,
    /// With https: a PEM file with the certificate of the device, or of who signed it
    #[arg(long, global = true, env = "INFERD_CA", value_name = "FILE", conflicts_with = "fingerprint")]
    ca: Option<PathBuf>,
}

impl Known {
    /// The configuration of a client that knows its device this way.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn config(&self) -> Result<Arc<ClientConfig>, String> {
        // A variable that is set to nothing is one that is not set.
        let fingerprint = self.fingerprint.as_deref().filter(|f| !f.is_empty());
        let trust = match (fingerprint, &self.ca) {
            (Some(text), _) => {
                Trust::Fingerprint(text.parse::<Fingerprint>().map_err(|e| format!("--fingerprint: {e}"))?)
            }
            (None, Some(file)) => {
                Trust::Signers(std::fs::read(file).map_err(|e| format!("--ca {}: {e}", file.display()))?)
            }
            (None, None) => {
                return Err(
                    "https needs --fingerprint SHA256 (the device's log and /status show it) or --ca FILE"
                        .into(),
                );
            }
        };
        inferd_tls::client(trust).map_err(|e| match &self.ca {
            Some(file) => format!("--ca {}: {e}", file.display()),
            None => e.to_string(),
        })
    }
}

/// The name a handshake asks for.
fn name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| io::Error::other(format!("{host} is no name that a certificate could have")))
}

/// Why a handshake failed, in words.
fn explained(e: io::Error) -> io::Error {
    let text = e.to_string();
    if text.contains("ApplicationVerificationFailure") {
        return io::Error::other("the device shows another certificate than the one with this fingerprint");
    }
    e
}

// ------------------------------------------------------------------------------------------------------- for requests

/// Puts TLS on the connections of requests.
#[derive(Debug)]
pub struct Tls(pub Arc<ClientConfig>);

impl<In: Transport> Connector<In> for Tls {
    type Out = Either<In, Encrypted>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() || transport.is_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let refused = |e: inferd_tls::rustls::Error| explained(io::Error::other(e));
        let mut connection = ClientConnection::new(self.0.clone(), name(host)?).map_err(refused)?;
        let mut socket = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        socket.set_timeout(details.timeout);
        connection.complete_io(&mut socket).map_err(explained)?;
        let buffers =
            LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(Encrypted { buffers, stream: StreamOwned::new(connection, socket) })))
    }
}

/// A connection of a request, over TLS.
pub struct Encrypted {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encrypted")
    }
}

impl Transport for Encrypted {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output)?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let amount = self.stream.read(input)?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

// -------------------------------------------------------------------------------------------------------- for uploads

/// A connection of an upload, plain or over TLS.
pub enum Link {
    /// Plain.
    Plain(TcpStream),
    /// Over TLS.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Link {
    /// Over this socket.
    ///
    /// # Errors
    /// When the handshake fails.
    pub fn over(socket: TcpStream, tls: Option<&Arc<ClientConfig>>, host: &str) -> io::Result<Self> {
        let Some(config) = tls else { return Ok(Self::Plain(socket)) };
        let mut connection =
            ClientConnection::new(config.clone(), name(host)?).map_err(|e| explained(io::Error::other(e)))?;
        let mut socket = socket;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).map_err(explained)?;
        }
        Ok(Self::Tls(Box::new(StreamOwned::new(connection, socket))))
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }

    /// How long a read may wait.
    ///
    /// # Errors
    /// As the socket says it.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket().set_read_timeout(timeout)
    }

    /// Whether the peer has said something, or hung up, within this time.
    pub fn answers(&mut self, within: PollTimeout) -> bool {
        if let Self::Tls(stream) = self
            && stream.conn.process_new_packets().is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
        {
            return true;
        }
        let mut fds = [PollFd::new(self.socket().as_fd(), PollFlags::POLLIN)];
        if !poll(&mut fds, within).is_ok_and(|n| n > 0) {
            return false;
        }
        let Self::Tls(stream) = self else { return true };
        // What came may be TLS's own: session tickets follow the handshake.
        let stream = &mut **stream;
        match stream.conn.read_tls(&mut stream.sock) {
            Ok(0) | Err(_) => true,
            Ok(_) => stream
                .conn
                .process_new_packets()
                .map_or(true, |state| state.plaintext_bytes_to_read() > 0 || state.peer_has_closed()),
        }
    }
}

impl Read for Link {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(into),
            Self::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
