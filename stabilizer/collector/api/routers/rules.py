"""Rule files: shown, changed while jobs run, and restored."""

from __future__ import annotations

from fastapi import APIRouter

from stabilizer.collector.api.bodies import BoundedRoute
from stabilizer.collector.api.dependencies import Actor, RunId, ServicesDep
from stabilizer.collector.api.openapi import PREFIX, problems
from stabilizer.protocol.queries import RulesChange, RulesHistory, RulesUpdate, RunRules

router = APIRouter(prefix=PREFIX, tags=["rules"], route_class=BoundedRoute)


@router.get("/runs/{run_id}/rules", summary="Show the rules of a run", responses=problems(404))
def get_run_rules(run_id: RunId, services: ServicesDep) -> RunRules:
    """Show the rule file of a run and the health of each rule."""
    return services.queries.rules(run_id)


@router.put(
    "/runs/{run_id}/rules",
    summary="Change the rules of a run",
    responses=problems(400, 404, 409, 413, 415),
)
def put_run_rules(
    run_id: RunId, update: RulesUpdate, actor: Actor, services: ServicesDep
) -> RulesChange:
    """Give a run another rule file, or an earlier version again, between two steps.

    Rules that stay as they are keep their state and their alerts; the alerts of others end.
    """
    return services.rules.update_run(run_id, update, actor)


@router.get(
    "/runs/{run_id}/rules/versions",
    summary="List versions of a run's rules",
    responses=problems(404),
)
def list_run_rules_versions(run_id: RunId, services: ServicesDep) -> RulesHistory:
    """List the versions of a run's rules, newest first."""
    return services.rules.history(run_id)


@router.put(
    "/rules",
    summary="Change the collector's rules",
    responses=problems(400, 404, 413, 415),
)
def put_rules(update: RulesUpdate, actor: Actor, services: ServicesDep) -> RulesChange:
    """Change the rules of all live runs whose jobs brought none, and of those to come."""
    return services.rules.update_default(update, actor)


@router.get(
    "/rules/versions", summary="List versions of the collector's rules", responses=problems()
)
def list_rules_versions(services: ServicesDep) -> RulesHistory:
    """List the versions of the rules for runs whose jobs bring none, newest first."""
    return services.rules.history(None)
