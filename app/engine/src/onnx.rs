//! A strict reader of ONNX files: what inspection needs, borrowed from the file.
//!
//! The engine's own loader copies weights, follows length prefixes beyond their message and recurses without a limit; a
//! damaged file must not reach it. This reader walks every message that loader walks, checks that each length stays
//! inside its parent and that graphs do not nest without end, and copies nothing but short integer lists. It knows the
//! messages of `onnx.proto3` by their field numbers and skips the fields nobody here asks for.

/// Graphs inside graphs (`If`, `Loop`): more than any exporter makes, few enough for any stack.
const MAX_DEPTH: usize = 16;

/// Why a file is not a readable network: one clause for [`crate::EngineError::Load`].
pub(crate) type Damage = String;

/// `ModelProto`.
#[derive(Debug, Default)]
pub(crate) struct Network<'a> {
    pub ir_version: i64,
    pub producer: &'a str,
    /// Operator sets: domain and version.
    pub opsets: Vec<(&'a str, i64)>,
    pub graph: Graph<'a>,
}

/// `GraphProto`.
#[derive(Debug, Default)]
pub(crate) struct Graph<'a> {
    pub nodes: Vec<Node<'a>>,
    pub initializers: Vec<Constant<'a>>,
    /// Declared inputs; old files list initializers among them, [`Graph::true_inputs`] does not.
    pub inputs: Vec<Value<'a>>,
    pub outputs: Vec<Value<'a>>,
    /// Types of intermediate values, where the exporter wrote them.
    pub values: Vec<Value<'a>>,
}

/// `NodeProto`: one operator.
#[derive(Debug, Default)]
pub(crate) struct Node<'a> {
    pub name: &'a str,
    pub op: &'a str,
    pub domain: &'a str,
    pub inputs: Vec<&'a str>,
    pub outputs: Vec<&'a str>,
    pub attributes: Vec<Attribute<'a>>,
}

/// `AttributeProto`, without floats and strings of no interest.
#[derive(Debug, Default)]
pub(crate) struct Attribute<'a> {
    pub name: &'a str,
    pub int: Option<i64>,
    pub ints: Vec<i64>,
    pub text: &'a [u8],
    pub tensor: Option<Constant<'a>>,
    pub graph: Option<Box<Graph<'a>>>,
}

/// `TensorProto`: an initializer or a constant.
#[derive(Debug, Default)]
pub(crate) struct Constant<'a> {
    pub name: &'a str,
    pub elem_type: i64,
    pub dims: Vec<i64>,
    /// `raw_data`, little-endian.
    pub raw: Option<&'a [u8]>,
    /// `int32_data` or `int64_data`.
    pub ints: Vec<i64>,
    /// `double_data`.
    pub doubles: Vec<f64>,
    /// The data is in another file.
    pub external: bool,
}

/// `ValueInfoProto`.
#[derive(Debug, Default)]
pub(crate) struct Value<'a> {
    pub name: &'a str,
    /// 0 when it is not a tensor (a sequence, map or optional).
    pub elem_type: i64,
    /// `None` when not even the number of dimensions is known.
    pub shape: Option<Vec<Dim<'a>>>,
}

/// One dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dim<'a> {
    Fixed(i64),
    /// Chosen by the caller; equal names mean equal sizes, an empty name means nothing.
    Dynamic(&'a str),
}

impl<'a> Network<'a> {
    /// Reads a file.
    pub fn parse(file: &'a [u8]) -> Result<Self, Damage> {
        if let Some(what) = other_format(file) {
            return Err(what);
        }
        let mut network = Self::default();
        let mut graph = None;
        for field in Fields::of(file, "model") {
            let field = field?;
            match field.number {
                1 => network.ir_version = field.int()?,
                2 => network.producer = field.text()?,
                7 if graph.is_some() => return Err("it holds two graphs".into()),
                7 => graph = Some(Graph::parse(field.bytes()?, 0)?),
                8 => network.opsets.push(opset(field.bytes()?)?),
                14 => pair(field.bytes()?)?,
                // Functions of the model itself: the loader does not know them and would fail at their first use.
                25 => return Err("it defines functions of its own; inline them first".into()),
                _ => {}
            }
        }
        network.graph = graph.ok_or("it holds no graph")?;
        if network.opsets.is_empty() {
            return Err("it names no operator set".into());
        }
        Ok(network)
    }

    /// Version of the standard operator set.
    pub fn opset(&self) -> Option<i64> {
        self.opsets.iter().find(|(domain, _)| matches!(*domain, "" | "ai.onnx")).map(|&(_, version)| version)
    }
}

impl<'a> Graph<'a> {
    fn parse(bytes: &'a [u8], depth: usize) -> Result<Self, Damage> {
        if depth >= MAX_DEPTH {
            return Err(format!("graphs are nested more than {MAX_DEPTH} deep"));
        }
        let mut graph = Self::default();
        for field in Fields::of(bytes, "graph") {
            let field = field?;
            match field.number {
                1 => graph.nodes.push(Node::parse(field.bytes()?, depth)?),
                5 => graph.initializers.push(Constant::parse(field.bytes()?)?),
                11 => graph.inputs.push(Value::parse(field.bytes()?)?),
                12 => graph.outputs.push(Value::parse(field.bytes()?)?),
                13 => graph.values.push(Value::parse(field.bytes()?)?),
                15 => return Err("it has sparse initializers; make them dense first".into()),
                _ => {}
            }
        }
        Ok(graph)
    }

    /// Inputs a caller has to give: those that are not initializers.
    pub fn true_inputs(&self) -> impl Iterator<Item = &Value<'a>> {
        let constants: std::collections::HashSet<&str> = self.initializers.iter().map(|c| c.name).collect();
        self.inputs.iter().filter(move |v| !constants.contains(v.name))
    }
}

impl<'a> Node<'a> {
    fn parse(bytes: &'a [u8], depth: usize) -> Result<Self, Damage> {
        let mut node = Self::default();
        for field in Fields::of(bytes, "node") {
            let field = field?;
            match field.number {
                1 => node.inputs.push(field.text()?),
                2 => node.outputs.push(field.text()?),
                3 => node.name = field.text()?,
                4 => node.op = field.text()?,
                5 => node.attributes.push(Attribute::parse(field.bytes()?, depth)?),
                7 => node.domain = field.text()?,
                _ => {}
            }
        }
        Ok(node)
    }

    /// The attribute of this name.
    pub fn attribute(&self, name: &str) -> Option<&Attribute<'a>> {
        self.attributes.iter().find(|a| a.name == name)
    }

    /// What to call this node in a message: its name, or its first output when it has none.
    pub fn label(&self) -> &'a str {
        if self.name.is_empty() { self.outputs.first().copied().unwrap_or_default() } else { self.name }
    }

    /// The graphs inside this node.
    pub fn subgraphs(&self) -> impl Iterator<Item = &Graph<'a>> {
        self.attributes.iter().filter_map(|a| a.graph.as_deref())
    }
}

impl<'a> Attribute<'a> {
    fn parse(bytes: &'a [u8], depth: usize) -> Result<Self, Damage> {
        let mut attribute = Self::default();
        for field in Fields::of(bytes, "attribute") {
            let field = field?;
            match field.number {
                1 => attribute.name = field.text()?,
                3 => attribute.int = Some(field.int()?),
                4 => attribute.text = field.bytes()?,
                5 => attribute.tensor = Some(Constant::parse(field.bytes()?)?),
                6 => attribute.graph = Some(Box::new(Graph::parse(field.bytes()?, depth + 1)?)),
                8 => field.ints(&mut attribute.ints)?,
                10 | 11 => return Err("a node has a list of tensors or graphs as attribute".into()),
                _ => {}
            }
        }
        Ok(attribute)
    }
}

impl<'a> Constant<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Damage> {
        let mut constant = Self::default();
        for field in Fields::of(bytes, "tensor") {
            let field = field?;
            match field.number {
                1 => field.ints(&mut constant.dims)?,
                2 => constant.elem_type = field.int()?,
                5 | 7 => field.ints(&mut constant.ints)?,
                8 => constant.name = field.text()?,
                9 => constant.raw = Some(field.bytes()?),
                10 => field.doubles(&mut constant.doubles)?,
                13 => pair(field.bytes()?)?,
                14 => constant.external = field.int()? != 0,
                _ => {}
            }
        }
        Ok(constant)
    }

    /// Number of elements the dimensions say; `None` when one is negative or the product is not a size.
    pub fn elements(&self) -> Option<u64> {
        self.dims.iter().try_fold(1_u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))
    }

    /// The elements of an INT64 constant.
    pub fn int64s(&self) -> impl Iterator<Item = i64> {
        let raw = self.raw.unwrap_or_default().as_chunks::<8>().0;
        raw.iter().map(|b| i64::from_le_bytes(*b)).chain(self.ints.iter().copied())
    }

    /// The elements of an FP64 constant.
    pub fn float64s(&self) -> impl Iterator<Item = f64> {
        let raw = self.raw.unwrap_or_default().as_chunks::<8>().0;
        raw.iter().map(|b| f64::from_le_bytes(*b)).chain(self.doubles.iter().copied())
    }
}

impl<'a> Value<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Damage> {
        let mut value = Self::default();
        for field in Fields::of(bytes, "value") {
            let field = field?;
            match field.number {
                1 => value.name = field.text()?,
                2 => value.read_type(field.bytes()?)?,
                _ => {}
            }
        }
        Ok(value)
    }

    fn read_type(&mut self, bytes: &'a [u8]) -> Result<(), Damage> {
        for field in Fields::of(bytes, "type") {
            let field = field?;
            match field.number {
                1 => self.read_tensor_type(field.bytes()?)?,
                4 => read_sequence(field.bytes()?, 0)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_tensor_type(&mut self, bytes: &'a [u8]) -> Result<(), Damage> {
        for field in Fields::of(bytes, "tensor type") {
            let field = field?;
            match field.number {
                1 => self.elem_type = field.int()?,
                2 => {
                    let dims = Fields::of(field.bytes()?, "shape")
                        .filter_map(|f| f.map(|f| (f.number == 1).then_some(f)).transpose())
                        .map(|f| dimension(f?.bytes()?));
                    self.shape = Some(dims.collect::<Result<_, Damage>>()?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Walks the element type of a sequence, only to bound its depth.
fn read_sequence(bytes: &[u8], depth: usize) -> Result<(), Damage> {
    if depth >= MAX_DEPTH {
        return Err(format!("types are nested more than {MAX_DEPTH} deep"));
    }
    for field in Fields::of(bytes, "sequence type") {
        let field = field?;
        if field.number != 1 {
            continue;
        }
        for inner in Fields::of(field.bytes()?, "type") {
            let inner = inner?;
            match inner.number {
                1 => Value::default().read_tensor_type(inner.bytes()?)?,
                4 => read_sequence(inner.bytes()?, depth + 1)?,
                _ => {}
            }
        }
    }
    Ok(())
}

fn dimension(bytes: &[u8]) -> Result<Dim<'_>, Damage> {
    let mut dim = Dim::Dynamic("");
    for field in Fields::of(bytes, "dimension") {
        let field = field?;
        match field.number {
            1 => dim = Dim::Fixed(field.int()?),
            2 => dim = Dim::Dynamic(field.text()?),
            _ => {}
        }
    }
    // Some exporters write a dynamic batch as -1.
    Ok(if matches!(dim, Dim::Fixed(..0)) { Dim::Dynamic("") } else { dim })
}

/// `StringStringEntryProto`, which nobody here asks for: the loader reads it, and would never come to its end where a length
/// goes beyond it.
fn pair(bytes: &[u8]) -> Result<(), Damage> {
    for field in Fields::of(bytes, "key and value") {
        let field = field?;
        if matches!(field.number, 1 | 2) {
            field.text()?;
        }
    }
    Ok(())
}

fn opset(bytes: &[u8]) -> Result<(&str, i64), Damage> {
    let (mut domain, mut version) = ("", 0);
    for field in Fields::of(bytes, "operator set") {
        let field = field?;
        match field.number {
            1 => domain = field.text()?,
            2 => version = field.int()?,
            _ => {}
        }
    }
    Ok((domain, version))
}

/// Recognises what people put in a model's place by mistake, so that the message can say so.
fn other_format(file: &[u8]) -> Option<Damage> {
    let known = [
        (&b"PK\x03\x04"[..], "a ZIP archive, as PyTorch checkpoints are; export it to ONNX first"),
        (b"\x89HDF", "an HDF5 file, as Keras models are; convert it to ONNX first"),
        (b"\x01HEF", "a Hailo executable (HEF); the cpu engine runs ONNX"),
        (b"RTEN", "an .rten file; the cpu engine loads the ONNX it was made from"),
        (b"\x1f\x8b", "gzip data; unpack it first"),
        (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    ];
    if let Some((_, what)) = known.iter().find(|(magic, _)| file.starts_with(magic)) {
        return Some(format!("it is {what}"));
    }
    if file.get(4..8) == Some(b"TFL3") {
        return Some("it is a TensorFlow Lite model; convert it to ONNX first".into());
    }
    // A network starts with a version number (byte 0x08) or a length (0x12, 0x3a, 0x42); printable text does not.
    let head = &file[..file.len().min(16)];
    let text = head.iter().all(|&b| b.is_ascii_graphic() || matches!(b, b' ' | b'\t' | b'\r' | b'\n'));
    (text && head.len() >= 4).then(|| {
        let start = String::from_utf8_lossy(head).into_owned();
        format!("it is text that starts with {start:?}, not an ONNX network")
    })
}

/// One field of a message.
struct Field<'a> {
    number: u64,
    wire: Wire<'a>,
    message: &'static str,
}

enum Wire<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    Fixed32,
}

impl<'a> Field<'a> {
    fn wrong(&self) -> Damage {
        format!("field {} of a {} has the wrong kind; the file is damaged", self.number, self.message)
    }

    fn int(&self) -> Result<i64, Damage> {
        match self.wire {
            Wire::Varint(v) => Ok(v.cast_signed()),
            _ => Err(self.wrong()),
        }
    }

    fn bytes(&self) -> Result<&'a [u8], Damage> {
        match self.wire {
            Wire::Bytes(b) => Ok(b),
            _ => Err(self.wrong()),
        }
    }

    fn text(&self) -> Result<&'a str, Damage> {
        std::str::from_utf8(self.bytes()?).map_err(|_| self.wrong())
    }

    /// A repeated integer, packed or not.
    fn ints(&self, to: &mut Vec<i64>) -> Result<(), Damage> {
        match self.wire {
            Wire::Varint(v) => to.push(v.cast_signed()),
            Wire::Bytes(mut packed) => {
                while !packed.is_empty() {
                    to.push(varint(&mut packed).ok_or_else(|| self.wrong())?.cast_signed());
                }
            }
            _ => return Err(self.wrong()),
        }
        Ok(())
    }

    /// A repeated double, packed or not.
    fn doubles(&self, to: &mut Vec<f64>) -> Result<(), Damage> {
        match self.wire {
            Wire::Fixed64(v) => to.push(f64::from_le_bytes(v)),
            Wire::Bytes(packed) => {
                let (values, rest) = packed.as_chunks::<8>();
                if !rest.is_empty() {
                    return Err(self.wrong());
                }
                to.extend(values.iter().map(|v| f64::from_le_bytes(*v)));
            }
            _ => return Err(self.wrong()),
        }
        Ok(())
    }
}

/// The fields of one message.
struct Fields<'a> {
    rest: &'a [u8],
    message: &'static str,
}

impl<'a> Fields<'a> {
    fn of(bytes: &'a [u8], message: &'static str) -> Self {
        Self { rest: bytes, message }
    }

    fn read(&mut self) -> Option<Field<'a>> {
        let tag = varint(&mut self.rest)?;
        let wire = match tag & 7 {
            0 => Wire::Varint(varint(&mut self.rest)?),
            1 => Wire::Fixed64(*self.rest.split_first_chunk().map(|(v, rest)| {
                self.rest = rest;
                v
            })?),
            2 => {
                let len = usize::try_from(varint(&mut self.rest)?).ok()?;
                let (bytes, rest) = self.rest.split_at_checked(len)?;
                self.rest = rest;
                Wire::Bytes(bytes)
            }
            5 => {
                self.rest = self.rest.get(4..)?;
                Wire::Fixed32
            }
            // 3 and 4 are groups, which ONNX never had.
            _ => return None,
        };
        let number = tag >> 3;
        (number != 0).then_some(Field { number, wire, message: self.message })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or_else(|| {
            format!("a {} is cut short or not a protobuf message; the file is damaged", self.message)
        }))
    }
}

/// Takes a base-128 number of at most ten bytes from the front.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for (i, &byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if i == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * i);
        if byte & 0x80 == 0 {
            *bytes = &bytes[i + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_network_is_called_by_its_name() {
        let says = |file: &[u8], word: &str| {
            let message = Network::parse(file).unwrap_err();
            assert!(message.contains(word), "{message}");
        };
        says(b"DUMMY_HEF_CONTENT_FOR_TESTING_tcn_encoder_v0.1.0\n", "DUMMY_HEF_CONTEN");
        says(b"{\"mock_hef\": true}", "mock_hef");
        says(b"<!DOCTYPE html><html><body>404</body></html>", "<!DOCTYPE html>");
        says(b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull");
        says(b"PK\x03\x04\x00\x00", "PyTorch");
        says(b"\x01HEF\x00\x00\x00\x02", "Hailo");
        says(&[0; 64], "damaged");
        says(&[0xff; 64], "damaged");
        says(b"\x08\x08", "no graph");
    }

    #[test]
    fn a_length_beyond_its_message_is_damage() {
        // model { graph: 2 bytes { node: claims 127 bytes } }
        assert!(Network::parse(&[0x3a, 0x02, 0x0a, 0x7f]).unwrap_err().contains("a graph is cut short"));
        // A length near 2^64 must not wrap.
        let file = [&[0x3a][..], &[0xff; 9], &[0x01]].concat();
        assert!(Network::parse(&file).unwrap_err().contains("a model is cut short"));
        // Also in what is not asked for but read by the loader: model { metadata_props: 2 bytes { key: claims 127 bytes } },
        // and the same as a constant's external data.
        let wrong = [0x0a, 0x7f];
        let told = Network::parse(&[&[0x72, 0x02][..], &wrong].concat()).unwrap_err();
        assert!(told.contains("a key and value is cut short"), "{told}");
        let told = Network::parse(&[&[0x3a, 0x06, 0x2a, 0x04, 0x6a, 0x02][..], &wrong].concat()).unwrap_err();
        assert!(told.contains("a key and value is cut short"), "{told}");
    }

    #[test]
    fn graphs_nested_without_end_do_not_reach_the_stack() {
        fn message(number: u8, body: &[u8]) -> Vec<u8> {
            let mut out = vec![number << 3 | 2];
            let mut len = body.len();
            while len > 0x7f {
                out.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
                len >>= 7;
            }
            out.push(u8::try_from(len).unwrap());
            out.extend_from_slice(body);
            out
        }
        let mut graph = Vec::new();
        for _ in 0..20_000 {
            // graph { node { attribute { g: graph } } }
            graph = message(1, &message(5, &message(6, &graph)));
        }
        let error = Network::parse(&message(7, &graph)).unwrap_err();
        assert!(error.contains("nested"), "{error}");
    }
}
