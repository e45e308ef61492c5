# PersonaLive in a container: the command line, batches and the service. docs/scale.md says how to run it.
# The driver comes from the host (NVIDIA Container Toolkit), CUDA's libraries with PyTorch.
FROM python:3.12-slim

# Triton compiles its launchers with a C compiler; KubeRay asks for a node's health with wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/*

# The libraries first: they change less often than the program, whose pyproject.toml says which versions will do.
COPY pyproject.toml README.md LICENSE NOTICE /src/
# hadolint ignore=DL3013
RUN mkdir /src/personalive_core && touch /src/personalive_core/__init__.py \
    && pip install --no-cache-dir '/src[standalone,serve]' 'ray[default]' \
    && pip uninstall --yes personalive
COPY personalive_core /src/personalive_core
RUN pip install --no-cache-dir --no-deps /src

# The cache of the Hugging Face hub, the weights beside it, and Triton's kernels outlive the container.
ENV HF_HOME=/cache/huggingface TRITON_CACHE_DIR=/cache/triton PERSONALIVE_WEIGHTS=/cache/weights
RUN useradd --create-home --uid 1000 personalive && mkdir /cache /work && chown personalive /cache /work
COPY --chmod=755 tools/predict.sh /usr/local/bin/predict
USER 1000
VOLUME /cache
WORKDIR /work

CMD ["personalive", "--help"]
