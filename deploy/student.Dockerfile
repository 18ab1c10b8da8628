# The trainer: corte-student and what it needs, torch included; no teacher. The context is the repository root.
FROM python:3.11-slim AS build
RUN python -m venv /opt/venv
WORKDIR /src
COPY constraints.txt ./
COPY shared/ shared/
COPY student/ student/
# Both folders in one command: pip takes corte-protocol from ./shared and asks no index for that name.
RUN /opt/venv/bin/pip install --no-cache-dir -c constraints.txt ./shared ./student

FROM python:3.11-slim
# A named volume takes over the owner of the folder that it is first mounted on.
RUN groupadd --gid 10002 corte \
    && useradd --uid 10002 --gid 10002 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin corte \
    && install -d -o 10002 -g 10002 /runs \
    && install -d -o 10002 -g 10002 -m 0700 /ledger \
    && install -d /images /weights
COPY --from=build /opt/venv /opt/venv
# The root is read-only and there is no way out: answers go to /ledger, caches to /tmp, weights come by volume.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    XDG_CACHE_HOME=/tmp \
    XDG_DATA_HOME=/ledger
USER 10002:10002
ENTRYPOINT ["corte-student"]
CMD ["--help"]
