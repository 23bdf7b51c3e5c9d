"""What instances measure, over HTTP."""

from typing import Annotated, Any

from litestar import Controller, Request
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, QueryParameter
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import principal_of, requires
from quazzar.core.routing import get
from quazzar.panel.fleet.metrics import MetricsService
from quazzar.panel.fleet.metrics_schemas import HistoryOut, Metric, MetricsOut, Range
from quazzar.panel.fleet.process import Fleet

MetricsRequest = Request[Any, Any, State]
InstanceId = FromPath[
    Annotated[str, Meta(description="Id of an instance.", examples=["inst_23oc77vtak2bdwdlqw5ffwpz33"])]
]


async def provide_metrics(request: MetricsRequest, session: NamedDependency[AsyncSession]) -> MetricsService:
    fleet: Fleet = request.app.state.fleet
    return MetricsService(session, principal_of(request), fleet.settings.agent.heartbeat_seconds)


class MetricsController(Controller):
    path = "/fleet"
    tags = ("Fleet",)
    dependencies = {"metrics": Provide(provide_metrics)}

    @get(
        "/metrics/{instance_id:str}",
        guards=[requires("fleet:read")],
        operation_id="GetInstanceMetrics",
        summary="What an instance measured last",
    )
    async def get_metrics(self, metrics: NamedDependency[MetricsService], instance_id: InstanceId) -> MetricsOut:
        """The values of the newest heartbeat: host, and each app. `measured_at` is by the panel's clock."""
        return await metrics.latest(instance_id)

    @get(
        "/instances/{instance_id:str}/metrics/history",
        guards=[requires("fleet:read")],
        operation_id="GetInstanceMetricsHistory",
        summary="What an instance measured over time",
    )
    async def get_history(
        self,
        metrics: NamedDependency[MetricsService],
        instance_id: InstanceId,
        range: Annotated[Range, QueryParameter(description="How far back from now.")] = "24h",  # noqa: A002
        metric: Annotated[
            Metric,
            QueryParameter(description="Which value: one of a host, or with `app` one of an app."),
        ] = "cpu_percent",
        app: Annotated[
            str | None, QueryParameter(max_length=64, description="Id of an app, for what that one used.")
        ] = None,
        step: Annotated[
            int | None,
            QueryParameter(
                ge=1,
                le=86_400,
                description="Seconds that a point stands for. The answer's `step_seconds` is the next that there is.",
            ),
        ] = None,
    ) -> HistoryOut:
        """Minimum, average and maximum of each step; 1,500 points at most. Samples are kept for two days, sums over
        five minutes for two weeks, hours for 400 days.
        """
        return await metrics.history(instance_id, span=range, metric=metric, app_id=app, step_seconds=step)
