# The teacher service: corte-teacher and what it needs; no torch, no student. The context is the repository root.
FROM python:3.11-slim AS build
RUN python -m venv /opt/venv
WORKDIR /src
COPY constraints.txt ./
COPY shared/ shared/
COPY teacher_service/ teacher_service/
# Both folders in one command: pip takes corte-protocol from ./shared and asks no index for that name.
RUN /opt/venv/bin/pip install --no-cache-dir -c constraints.txt ./shared ./teacher_service

FROM python:3.11-slim
# A named volume takes over the owner of the folder that it is first mounted on.
RUN groupadd --gid 10001 corte \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin corte \
    && install -d -o 10001 -g 10001 -m 0700 /keys /state \
    && install -d /models
COPY --from=build /opt/venv /opt/venv
# onnxruntime's own wheels report to their maker what they run, the model file's name included, unless told not to.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1
# Off loopback corte-teacher wants TLS or CORTE_TEACHER_BEHIND_PROXY: whoever runs the image decides, not the image.
ENV CORTE_TEACHER_HOST=0.0.0.0 \
    CORTE_TEACHER_PORT=8000
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["corte-teacher"]
CMD ["serve"]
