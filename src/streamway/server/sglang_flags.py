"""The options of `python3 -m sglang.launch_server` by version, so that a misspelt one is found before a node is.

Read from SGLang's sources: every option that its parser adds and every field of its arguments that has one; for 0.5.12,
0.5.16, 0.5.19, 0.5.20, 0.5.21 and 0.5.23 that is what the parser itself says. It takes them as they are written, with
dashes only; those that can be switched off have their `--no-` form here as well. Releases such as 0.5.12.post1 have the
options of the version that they mend. Nothing is refused for a version that is not here.
"""

from streamway.server.flag_history import FlagHistory

_FIRST_NAMES = """
abort-on-priority-when-disabled admin-api-key allow-auto-truncate api-key attention-backend
attention-context-parallel-size attn-cp-size base-gpu-id batch-notify-size bucket-e2e-request-latency
bucket-inter-token-latency bucket-time-to-first-token chat-template checkpoint-engine-wait-weights-before-ready
chunked-prefill-size collect-tokens-histogram completion-template config constrained-json-disable-any-whitespace
constrained-json-whitespace-pattern context-length cpu-offload-gb crash-dump-folder cuda-graph-bs
cuda-graph-max-bs custom-sigquit-handler custom-weight-loader data-parallel-size debug-cuda-graph
debug-tensor-dump-inject debug-tensor-dump-input-file debug-tensor-dump-layers debug-tensor-dump-output-folder
decode-attention-backend decode-log-interval decrypted-config-file decrypted-draft-config-file deepep-config
deepep-mode default-priority-value delete-ckpt-after-loading detokenizer-worker-num device
disable-chunked-prefix-cache disable-cuda-graph disable-cuda-graph-padding disable-custom-all-reduce
disable-fast-image-processor disable-flashinfer-autotune disable-flashinfer-cutlass-moe-fp4-allgather
disable-hybrid-swa-memory disable-outlines-disk-cache disable-overlap-schedule disable-piecewise-cuda-graph
disable-priority-preemption disable-radix-cache disable-shared-experts-fusion disable-tokenizer-batch-decode
disaggregation-bootstrap-port disaggregation-decode-enable-offload-kvcache
disaggregation-decode-enable-radix-cache disaggregation-decode-polling-interval disaggregation-ib-device
disaggregation-mode disaggregation-transfer-backend dist-init-addr dist-timeout dllm-algorithm
dllm-algorithm-config download-dir dp-size dtype dynamic-batch-tokenizer-batch-size
dynamic-batch-tokenizer-batch-timeout elastic-ep-backend elastic-ep-rejoin enable-adaptive-dispatch-to-encoder
enable-aiter-allreduce-fusion enable-attn-tp-input-scattered enable-breakable-cuda-graph
enable-broadcast-mm-inputs-process enable-cache-report enable-cudagraph-gc enable-custom-logit-processor
enable-deepep-waterfill enable-deterministic-inference enable-dp-attention
enable-dp-attention-local-control-broadcast enable-dp-lm-head enable-draft-weights-cpu-backup
enable-dynamic-batch-tokenizer enable-dynamic-chunking enable-elastic-expert-backup enable-eplb
enable-expert-distribution-metrics enable-flashinfer-allreduce-fusion enable-forward-pass-metrics
enable-fp32-lm-head enable-fused-moe-sum-all-reduce enable-fused-qk-norm-rope enable-hierarchical-cache
enable-hisparse enable-http2 enable-layerwise-nvtx-marker enable-lmcache enable-lora enable-lora-overlap-loading
enable-memory-saver enable-metrics enable-metrics-for-all-schedulers enable-mfu-metrics enable-mis
enable-mixed-chunk enable-mm-global-cache enable-mscclpp enable-multi-layer-eagle enable-multimodal
enable-nan-detection enable-nccl-nvls enable-nsa-prefill-context-parallel enable-p2p-check enable-pdmux
enable-piecewise-cuda-graph enable-precise-embedding-interpolation enable-prefill-context-parallel
enable-prefill-delayer enable-prefix-mm-cache enable-priority-scheduling enable-profile-cuda-graph
enable-quant-communications enable-request-time-stats-logging enable-return-hidden-states
enable-return-indexer-topk enable-return-routed-experts enable-single-batch-overlap enable-ssl-refresh
enable-streaming-session enable-strict-thinking enable-symm-mem enable-tokenizer-batch-encode
enable-torch-compile enable-torch-compile-debug-mode enable-torch-symm-mem enable-trace enable-two-batch-overlap
enable-weights-cpu-backup encoder-only encoder-transfer-backend encoder-urls
enforce-disable-flashinfer-allreduce-fusion enforce-piecewise-cuda-graph enforce-shared-experts-fusion
engine-info-bootstrap-port ep ep-dispatch-algorithm ep-num-redundant-experts ep-size eplb-algorithm
eplb-min-rebalancing-utilization-threshold eplb-rebalance-layers-per-chunk eplb-rebalance-num-iterations
expert-distribution-recorder-buffer-size expert-distribution-recorder-mode expert-parallel-size
experts-shared-outer-loras export-metrics-to-file export-metrics-to-file-dir extra-metric-labels
fastapi-root-path file-storage-path flashinfer-mla-disable-ragged flashinfer-mxfp4-moe-precision forward-hooks
forward-pass-metrics-ipc-name forward-pass-metrics-worker-id fp4-gemm-backend fp8-gemm-backend gc-threshold
gc-warning-threshold-secs generation-tokens-buckets gpu-id-step grammar-backend grpc-http-sidecar-port grpc-mode
help hf-chat-template-name hicache-io-backend hicache-mem-layout hicache-ratio hicache-size
hicache-storage-backend hicache-storage-backend-extra-config hicache-storage-prefetch-policy
hicache-write-policy hierarchical-sparse-attention-extra-config hisparse-config host hybrid-kvcache-ratio
incremental-streaming-output init-expert-location is-embedding json-model-override-args
keep-mm-feature-on-device kt-cpuinfer kt-max-deferred-experts-per-token kt-method kt-num-gpu-experts
kt-threadpool-count kt-weight-path kv-cache-dtype kv-events-config language-only limit-mm-data-per-request
linear-attn-backend linear-attn-decode-backend linear-attn-prefill-backend load-balance-method load-format
log-level log-level-http log-requests log-requests-format log-requests-level log-requests-target lora-backend
lora-drain-wait-threshold lora-eviction-policy lora-paths lora-strict-loading lora-target-modules
lora-use-virtual-experts mamba-backend mamba-full-memory-ratio mamba-scheduler-strategy mamba-ssm-dtype
mamba-track-interval max-loaded-loras max-lora-chunk-size max-lora-rank max-loras-per-batch max-mamba-cache-size
max-prefill-tokens max-queued-requests max-running-requests max-total-tokens mem-fraction-static
mm-attention-backend mm-enable-dp-encoder mm-process-config model model-checksum model-config-parser model-impl
model-loader-extra-config model-path modelexpress-config modelopt-checkpoint-restore-path
modelopt-checkpoint-save-path modelopt-export-path modelopt-quant moe-a2a-backend moe-data-parallel-size
moe-dense-tp-size moe-dp-size moe-runner-backend mooncake-ib-device msprobe-dump-config nccl-init-addr nccl-port
nnodes no-experts-shared-outer-loras no-lora-strict-loading no-record-nolora-graph node-rank nsa-decode-backend
nsa-prefill-backend nsa-prefill-cp-mode num-continuous-decode-steps num-reserved-decode-tokens numa-node
offload-group-size offload-mode offload-num-in-group offload-prefetch-step otlp-traces-endpoint page-size
pdmux-config-path piecewise-cuda-graph-compiler piecewise-cuda-graph-max-tokens piecewise-cuda-graph-tokens
pipeline-parallel-size port pp-async-batch-depth pp-max-micro-batch-size pp-size pre-warm-nccl
preferred-sampling-params prefill-attention-backend prefill-cp-mode prefill-delayer-forward-passes-buckets
prefill-delayer-max-delay-ms prefill-delayer-max-delay-passes prefill-delayer-queue-min-ratio
prefill-delayer-token-usage-low-watermark prefill-delayer-wait-seconds-buckets prefill-max-requests
prefill-only-disable-kv-cache prefill-round-robin-balance priority-scheduling-preemption-threshold
prompt-tokens-buckets quantization quantization-param-path quantize-and-serve radix-eviction-policy random-seed
reasoning-parser record-nolora-graph remote-instance-weight-loader-backend
remote-instance-weight-loader-seed-instance-ip remote-instance-weight-loader-seed-instance-service-port
remote-instance-weight-loader-send-weights-group-ports
remote-instance-weight-loader-start-seed-via-transfer-engine revision rl-on-policy-target rl-quant-profile
sampling-backend sampling-defaults schedule-conservativeness schedule-low-priority-values-first schedule-policy
scheduler-recv-interval served-model-name show-time-cost skip-server-warmup skip-tokenizer-init sleep-on-idle
sm-group-num soft-watchdog-timeout speculative-accept-threshold-acc speculative-accept-threshold-single
speculative-adaptive speculative-adaptive-config speculative-algorithm speculative-attention-mode
speculative-dflash-block-size speculative-dflash-draft-window-size speculative-draft-attention-backend
speculative-draft-load-format speculative-draft-model speculative-draft-model-path
speculative-draft-model-quantization speculative-draft-model-revision speculative-draft-window-size
speculative-eagle-topk speculative-moe-a2a-backend speculative-moe-runner-backend speculative-ngram-capacity
speculative-ngram-external-corpus-max-tokens speculative-ngram-external-corpus-path
speculative-ngram-external-sam-budget speculative-ngram-match-type speculative-ngram-max-bfs-breadth
speculative-ngram-max-trie-depth speculative-ngram-min-bfs-breadth speculative-num-draft-tokens
speculative-num-steps speculative-skip-dp-mlp-sync speculative-token-map ssl-ca-certs ssl-certfile ssl-keyfile
ssl-keyfile-password stream-interval stream-output stream-response-default-include-usage strip-thinking-cache
swa-full-tokens-ratio tbo-token-distribution-threshold tensor-parallel-size tokenizer-backend
tokenizer-metrics-allowed-custom-labels tokenizer-metrics-custom-labels-header tokenizer-mode tokenizer-path
tokenizer-worker-num tool-call-parser tool-server torch-compile-max-bs torchao-config tp-size
triton-attention-num-kv-splits triton-attention-reduce-in-fp32 triton-attention-split-tile-size
trust-remote-code use-ray uvicorn-access-log-exclude-prefixes warmups watchdog-timeout
weight-loader-disable-mmap weight-loader-drop-cache-after-load weight-loader-prefetch-checkpoints
weight-loader-prefetch-num-threads weight-version
"""
# What each later version added, and took away (-).
_CHANGES = """
0.5.13 asr-max-buffer-seconds asr-max-concurrent-sessions deepep-dispatcher-output-dtype disable-attn-tp-gather
    dsa-decode-backend dsa-prefill-backend dsa-prefill-cp-mode dsa-topk-backend enable-deepseek-v4-fp4-indexer
    enable-dsa-prefill-context-parallel encoder-bootstrap-port encoder-register-urls kv-canary
    kv-canary-real-data kv-canary-sweep-interval lmcache-config-file load-snapshot-publish-interval
    optimistic-prefill-retries radix-cache-backend trace-modules -enable-nan-detection -no-record-nolora-graph
    -record-nolora-graph
0.5.14 cp-strategy cuda-graph-backend-decode cuda-graph-backend-prefill cuda-graph-bs-decode
    cuda-graph-bs-prefill cuda-graph-config cuda-graph-max-bs-decode cuda-graph-max-bs-prefill
    cuda-graph-tc-compiler disable-decode-cuda-graph disable-prefill-cuda-graph
    disaggregation-decode-extra-slots enable-int8-mamba-checkpoint enable-prefill-cp
    flashinfer-allreduce-fusion-backend int8-mamba-ckpt-size mamba-radix-cache-strategy
    speculative-use-rejection-sampling -custom-sigquit-handler -debug-tensor-dump-inject
    -enable-piecewise-cuda-graph -hybrid-kvcache-ratio
0.5.15 bf16-gemm-backend dcp-size decode-context-parallel-size decoupled-spec-bind-endpoint
    decoupled-spec-connect-endpoints decoupled-spec-rank decoupled-spec-role dsa-paged-mqa-logits-backend
    enable-linear-replayssm enable-mamba-cache-stochastic-rounding enable-page-major-kv-layout
    enable-session-radix-cache enable-tf32-matmul enable-unified-memory linear-replayssm-cache-len
    mamba-cache-philox-rounds min-free-slots-delay spec-trace-dir
0.5.16 default-chat-template-kwargs dllm-fdfo elastic-ep-initial-size elastic-ep-join-mode
    elastic-ep-join-rank-offset elastic-ep-scale-timeout enable-dsa-cache-layer-split enable-flexkv
    enable-gdn-replayssm-spec enable-scattered-sconv enable-waterfill flexkv-config-file fuseep-mode grpc-port
    max-ep-size mm-feature-transport no-dllm-fdfo optimistic-prefill-attempts retraction-policy sidecar
    sidecar-args smg-grpc-mode smg-http-sidecar-port speculative-dspark-align-verify-tokens-to-graph-tier
    speculative-dspark-block-size speculative-dspark-confidence-sts-path speculative-dspark-sps-table-path
    -enable-deepep-waterfill -optimistic-prefill-retries
0.5.17 dcp-comm-backend dcp-replicate-q-proj dwdp-size enable-cp-decode-attn-tp enable-linear-replayssm-spec
    flashinfer-autotune-skip-ops linear-attn-verify-backend mamba-max-states-per-path mm-io-worker-num
    mm-processor-worker-num no-dcp-replicate-q-proj return-hidden-states-mode weight-cache-mode
    weight-cache-socket weight-cache-timeout
0.5.18 allowed-media-domains c128-page-size disaggregation-decode-retraction-backup enable-tp-lm-head-all-to-all
    expert-balancedness-report-mode http2-max-concurrent-streams image-processor-backend language-model-only
    media-url-max-file-size-mb mlx-enable-sampling mm-global-cache-backend mm-preprocess-cache-size-mb
    no-enable-tp-lm-head-all-to-all speculative-draft-kv-cache-dtype startup-weight-load-mode
    trust-mm-content-hashes -torchao-config
0.5.19 deepep-v2-mode dsv4-prefill-backend enable-dense-mlp-attn-tp enable-layernorm-sp enable-lean-attention
    enable-shared-experts-attn-tp enable-w4a4-mxfp4-megamoe gated-launch-port hicache-host-memory-mode
    hicache-storage-prefetch-retry-max-attempts hicache-storage-prefetch-retry-poll-interval
    http2-initial-connection-window-size load-publish-endpoint prefill-decode-interval
    speculative-dsa-topk-backend
0.5.20 dsv4-attn-backend enable-response-store enable-unified-cache-external-linker flashinfer-a2a-dispatch-type
    no-ple-offload-embedding ple-offload-backend ple-offload-dir ple-offload-embedding
    radix-eviction-policy-config return-input-ids return-output-ids sampling-mask-max-tokens
    speculative-domino-candidate-pool-size unified-cache-external-linker-backend uno-lora-path
    -collect-tokens-histogram -cuda-graph-bs -cuda-graph-max-bs -disable-piecewise-cuda-graph
    -dsa-prefill-cp-mode -enable-breakable-cuda-graph -enable-dsa-prefill-context-parallel
    -enable-expert-distribution-metrics -enable-gdn-replayssm-spec -enable-nsa-prefill-context-parallel
    -enable-prefill-context-parallel -enforce-piecewise-cuda-graph -mamba-scheduler-strategy -nsa-decode-backend
    -nsa-prefill-backend -nsa-prefill-cp-mode -piecewise-cuda-graph-compiler -piecewise-cuda-graph-max-tokens
    -piecewise-cuda-graph-tokens -prefill-cp-mode -prefill-round-robin-balance
    -speculative-dflash-draft-window-size -stream-output
0.5.21 boundary-reduction constrained-json-max-whitespace-cnt context-bucket cuda-graph-max-seq-len-prefill
    cuda-graph-prefill-max-context disable-aiter-allreduce-fusion-in-decode
    disable-aiter-allreduce-fusion-in-prefill disaggregation-decode-host-receive-threshold
    disaggregation-enable-kv-checksum enable-decoder-swa-bounded-replay enable-encoder-swa-bounded-replay
    enable-linker-mla-dedup enable-pd-role-switch grpc-response-timeout-secs hicache-host-memory-fraction
    otlp-service-name prefill-kv-cache-dequant-dtype shared-experts-tp-size speculative-draft-sink-size
    swa-prefix-tails trust-request-chat-template -elastic-ep-rejoin -keep-mm-feature-on-device
0.5.22 attention-data-parallel-size attn-dp-size disaggregation-decode-allocation-policy dsa-triton-union
    enable-dsa-fused-indexer enable-kv-cache-sharding enable-watermark no-enable-dsa-fused-indexer
    no-speculative-enable-w4a4-mxfp4-megamoe qsa-indexer-dtype speculative-enable-w4a4-mxfp4-megamoe
    speculative-use-block-verification watermark-config -cuda-graph-tc-compiler
0.5.23 enable-amd-monokernel enable-hicache enable-http-worker-reuseport enable-megamoe-for-layernorm-sp
    enable-nvidia-megakernel enable-paged-experts enable-return-aux-hidden-states monokernel-backend
    no-enable-decoder-swa-bounded-replay no-enable-fused-qk-norm-rope no-enable-tf32-matmul
    no-mm-enable-dp-encoder paged-experts-num-resident prefill-decode-interval-min-bs
    return-aux-hidden-state-layer-ids unified-cache-external-linker-config -speculative-skip-dp-mlp-sync
"""

FLAGS = FlagHistory(first=(0, 5, 12), names=_FIRST_NAMES, changes=_CHANGES)
