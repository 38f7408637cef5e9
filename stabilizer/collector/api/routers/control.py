"""The global switch and silences."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from stabilizer.collector.api.bodies import BoundedRoute
from stabilizer.collector.api.dependencies import Actor, ServicesDep, SilenceId
from stabilizer.collector.api.openapi import PREFIX, problems
from stabilizer.protocol.queries import (
    ControlState,
    ControlUpdate,
    Note,
    Silence,
    SilenceCreate,
)

router = APIRouter(prefix=PREFIX, tags=["control"], route_class=BoundedRoute)


@router.get("/control", summary="Show the global switch", responses=problems())
def get_control(services: ServicesDep) -> ControlState:
    """Show whether the policy is disarmed on all runs, who changed it, and the silences."""
    return services.control.get()


@router.put("/control", summary="Arm or disarm", responses=problems(400, 413, 415))
def put_control(update: ControlUpdate, actor: Actor, services: ServicesDep) -> ControlState:
    """Let the policy act, or stop it on all runs. Manual commands still work."""
    return services.control.update(update, actor)


@router.get("/silences", summary="List silences", responses=problems())
def list_silences(services: ServicesDep) -> list[Silence]:
    """List the silences in force."""
    return services.control.silences()


@router.post(
    "/silences",
    status_code=201,
    summary="Silence a rule",
    responses=problems(400, 404, 409, 413, 415),
)
def create_silence(silence: SilenceCreate, actor: Actor, services: ServicesDep) -> Silence:
    """Exclude a rule from decisions until a step or a time; it is still evaluated."""
    return services.control.add_silence(silence, actor)


@router.delete(
    "/silences/{silence_id}", status_code=204, summary="End a silence", responses=problems(404)
)
def delete_silence(
    silence_id: SilenceId, note: Annotated[Note, Query()], actor: Actor, services: ServicesDep
) -> Response:
    """Include a silenced rule in decisions again."""
    services.control.remove_silence(silence_id, note, actor)
    return Response(status_code=204)
