"""Which files of a model are published: what an engine reads, what the licence demands, and nothing else.

vLLM's streamer loads every *.safetensors at the root of a prefix, and a pod downloads every companion it finds
(vllm-project/vllm#40765, #54230), so a stray file doubles a model or fills a disk. The list is by name, at the root;
subfolders such as original/ or onnx/ hold other copies of the same weights.
"""

from fnmatch import fnmatchcase

COMPANIONS = (
    # What the model is and how to run it.
    "config.json",
    "config_*.json",
    "generation_config.json",
    "quant_config.json",
    "quantize_config.json",
    "hf_quant_config.json",
    # Text in and out.
    "tokenizer*.json",
    "tokenizer*.model",
    "*.tiktoken",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "source.spm",
    "target.spm",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template*.jinja",
    "additional_chat_templates/*.jinja",
    # Images, sound and video.
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    # Embedding models: how hidden states become one vector (sentence-transformers).
    "modules.json",
    "sentence_*_config.json",
    "?_Pooling/config.json",
    "?_Normalize/config.json",
    "?_Dense/config.json",
    "?_Dense/model.safetensors",
    # What a licence may demand to go with the weights.
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "NOTICE*",
    "USE_POLICY*",
    "license*",
)
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
STRAYS = ("consolidated*.safetensors", "adapter_*.safetensors", "optimizer*", "training_args*")


def is_companion(path: str) -> bool:
    """Tell whether a file that holds no weights belongs into a release."""
    return any(_matches(path, pattern) for pattern in COMPANIONS)


def is_publishable(path: str) -> bool:
    """Tell whether a file may appear under a release's prefix."""
    if any(_matches(path, pattern) for pattern in STRAYS):
        return False
    return is_companion(path) or any(_matches(path, pattern) for pattern in WEIGHTS)


def _matches(path: str, pattern: str) -> bool:
    """Match within one folder level: a star never crosses a slash."""
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)
