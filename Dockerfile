# The image that the pipeline's components run in. No torch, no engine: weights are read as bytes.
# tests/components/test_clean_environment.py runs the lines of the first stage and every component after them.
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md ./
COPY src src
COPY components components
COPY pipelines pipelines
RUN python -m venv /opt/streamway \
    && /opt/streamway/bin/python -m pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt .

FROM ${PYTHON}
COPY --from=build /opt/streamway /opt/streamway
RUN useradd --uid 10001 --create-home streamway
USER 10001
ENV PATH=/opt/streamway/bin:$PATH PYTHONUNBUFFERED=1
ENTRYPOINT []
