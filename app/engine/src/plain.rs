//! What ONNX Runtime says, for people: without the places in its source and the types of its functions.
//!
//! A message may have `[ONNXRuntimeError] : 1 : FAIL : ` at its beginning, and anywhere a place in the source that threw it, followed by
//! the function's name or its whole signature. What remains is the sentence its author wrote.

/// How the files of its source end.
const FILES: [&str; 6] = [".cc:", ".h:", ".cpp:", ".hpp:", ".cu:", ".cuh:"];

/// The sentence in a message; the message itself where nothing would be left.
pub(crate) fn plain(message: &str) -> String {
    let mut rest = without_code(message.trim());
    let mut sentence = String::with_capacity(rest.len());
    while let Some((before, after)) = place(rest) {
        sentence.push_str(before);
        rest = after_function(after);
        rest = without_code(rest);
    }
    sentence.push_str(rest);
    let words: Vec<_> = sentence.split_whitespace().collect();
    if words.is_empty() { message.trim().to_owned() } else { words.join(" ") }
}

/// Without `[ONNXRuntimeError] : 1 : FAIL : ` at the beginning.
fn without_code(text: &str) -> &str {
    let inner = || text.strip_prefix("[ONNXRuntimeError] : ")?.splitn(3, " : ").nth(2);
    inner().unwrap_or(text)
}

/// What stands before and after the first place in the source: `/onnxruntime_src/core/graph.cc:12 `.
fn place(text: &str) -> Option<(&str, &str)> {
    FILES
        .iter()
        .filter_map(|end| {
            let at = text.find(end)?;
            let begin = text[..at].rfind(char::is_whitespace).map_or(0, |i| i + 1);
            let line = &text[at + end.len()..];
            let digits = line.bytes().take_while(u8::is_ascii_digit).count();
            let after = line[digits..].strip_prefix(' ').filter(|_| digits > 0)?;
            Some((&text[..begin], after))
        })
        .min_by_key(|(before, _)| before.len())
}

/// What follows the function that a place is in: a name, or a signature with its types.
fn after_function(text: &str) -> &str {
    match text.find('(') {
        Some(open) if text[..open].contains("::") && !text[..open].ends_with(' ') => {
            after_signature(text, open)
        }
        _ => text.split_once(' ').map_or("", |(_, rest)| rest),
    }
}

/// What follows a signature, whose first parenthesis is at `open`: its arguments, `const`, what its templates are, and a lambda's own.
fn after_signature(text: &str, open: usize) -> &str {
    let mut rest = closed(&text[open..]);
    loop {
        rest = match rest.trim_start() {
            t if t.starts_with("(") || t.starts_with("[with ") => closed(t),
            t if t.starts_with("const::<lambda") || t.starts_with("::<lambda") => {
                t.find('(').map_or("", |open| closed(&t[open..]))
            }
            t => match t.strip_prefix("const ").or_else(|| t.strip_prefix("> ")) {
                Some(t) => t,
                None => return t,
            },
        };
    }
}

/// What follows the bracket that a text begins with; nothing when it is not closed.
fn closed(text: &str) -> &str {
    let mut depth = 0_usize;
    for (i, c) in text.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return &text[i + 1..];
                }
            }
            _ => {}
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn what_is_left_of_its_messages_are_sentences() {
        // The first six are what 1.31 said of broken networks.
        let cases = [
            (
                "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::PathString&, const onnxruntime::IOnnxRuntimeOpSchemaRegistryList*, const onnxruntime::logging::Logger&, const onnxruntime::ModelOptions&) Unsupported model IR version: 99, max supported IR version: 13\n",
                "Unsupported model IR version: 99, max supported IR version: 13",
            ),
            (
                "/onnxruntime_src/onnxruntime/core/graph/model_load_utils.h:46 void onnxruntime::model_load_utils::ValidateOpsetForDomain(const std::unordered_map<std::__cxx11::basic_string<char>, int>&, const onnxruntime::logging::Logger&, bool, const std::string&, int) ONNX Runtime only *guarantees* support for (some) models.",
                "ONNX Runtime only *guarantees* support for (some) models.",
            ),
            (
                "Non-zero status code returned while running Reshape node. Name:'' Status Message: /onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:91 onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, onnxruntime::TensorShapeVector&, bool) input_shape_size == requested_shape_size was false. Input shape:{1,4}",
                "Non-zero status code returned while running Reshape node. Name:'' Status Message: input_shape_size == requested_shape_size was false. Input shape:{1,4}",
            ),
            (
                "External data path validation failed for initializer: w. Error: tensorprotoutils.cc:434 ValidateExternalDataPathFromDir Absolute path not allowed for external data location",
                "External data path validation failed for initializer: w. Error: Absolute path not allowed for external data location",
            ),
            (
                "[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model. In Node, (\"\", Warp, \"\", -1) : (\"x\": tensor(float),) -> (\"y\": tensor(float),) , Error No Op registered for Warp with domain_version of 17",
                "This is an invalid model. In Node, (\"\", Warp, \"\", -1) : (\"x\": tensor(float),) -> (\"y\": tensor(float),) , Error No Op registered for Warp with domain_version of 17",
            ),
            ("the graph is not acyclic.", "the graph is not acyclic."),
            (
                "/o/provider_bridge_ort.cc:2167 onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library libonnxruntime_providers_cuda.so",
                "Failed to load library libonnxruntime_providers_cuda.so",
            ),
            (
                "/o/cuda_call.cc:129 std::conditional_t<THRW, void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, int) [with ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = cudaError] CUDA failure 35: too old ; line=282 ; expr=cudaSetDevice(id);",
                "CUDA failure 35: too old ; line=282 ; expr=cudaSetDevice(id);",
            ),
            ("/o/a.cc:7 onnxruntime::X::Y() const::<lambda(int)> no", "no"),
            ("see model.cc:abc and a.h:", "see model.cc:abc and a.h:"),
            ("", ""),
            ("/o/a.cc:7 onnxruntime::X::Y(", "/o/a.cc:7 onnxruntime::X::Y("),
        ];
        for (said, sentence) in cases {
            assert_eq!(plain(said), sentence, "{said}");
        }
    }
}
