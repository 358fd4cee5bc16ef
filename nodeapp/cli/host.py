"""fabstir-node host: the listing on the marketplace, through the process that holds the wallet.

While the node is down, that process is started for the command and ended after it.
"""

from __future__ import annotations

from typing import Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, Json, StateDir, chain_settings_of

EXIT_FINDINGS = 3

ApiUrl = Annotated[
    str, typer.Option("--api-url", help="Address for SDK clients, for example https://host:8080.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="repo/file or model id; repeatable. Default: the settings' one."),
]
Prices = Annotated[
    list[str] | None,
    typer.Option(
        "--price",
        metavar="'MODEL AMOUNT usd|native'",
        help="Per million tokens; MODEL * is every listed model. Repeatable.",
    ),
]
Stake = Annotated[str, typer.Option("--stake", help="Have at least so many FAB staked.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done.")]
Force = Annotated[bool, typer.Option("--force", help="Also while sessions are open.")]
Asset = Annotated[str, typer.Option("--asset", help="usd, native or all.")]
ModelArgument = Annotated[str, typer.Argument(help="repo/file or model id.")]
AnyModel = Annotated[str, typer.Argument(help="repo/file, model id, or * for every listed one.")]
Amount = Annotated[str, typer.Argument(help="USD (or native coin) per million tokens.")]
Figure = Annotated[str, typer.Option(help="Measured when left out, where this machine tells.")]
Electricity = Annotated[str, typer.Option("--electricity-per-kwh", help="USD.")]
UsdPerHour = Annotated[
    str, typer.Option("--usd-per-hour", help="What else an hour costs: wear, rent, hosting.")
]
MeasureSeconds = Annotated[
    float, typer.Option("--measure-seconds", min=0.1, max=600, help="How long to watch.")
]
Apply = Annotated[bool, typer.Option("--apply", help="Set the suggested price.")]
OneModel = Annotated[str, typer.Option("--model", help="repo/file or id; default: the settings'.")]
Native = Annotated[bool, typer.Option("--native", help="The price in native coin, not in USD.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = _group("This host on the marketplace: register, price, models, earnings.")
    group.command("status")(status)
    group.command("register")(register_)
    group.command("update")(update)
    group.command("withdraw")(withdraw)
    group.command("unregister")(unregister)
    models = _group("The models this host lists.")
    models.command("list")(models_list)
    models.command("add")(models_add)
    models.command("remove")(models_remove)
    group.add_typer(models, name="models")
    price = _group("What a million tokens cost.")
    price.command("list")(price_list)
    price.command("set")(price_set)
    price.command("clear")(price_clear)
    price.command("suggest")(price_suggest)
    group.add_typer(price, name="price")
    app.add_typer(group, name="host")


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)


def status(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Show the listing as the chain has it. Exit code 3: something needs attention."""
    from nodeapp.cli.host_change import names_of, read_view, say
    from nodeapp.cli.host_text import named, view_json, view_lines

    settings = chain_settings_of(config, state_dir, flags)
    view = read_view(settings)
    say([view_json(view)] if as_json else named(view_lines(view), names_of(settings, view)))
    if view.findings:
        raise typer.Exit(EXIT_FINDINGS)


def register_(  # noqa: PLR0913, PLR0917  # one argument an option
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    api_url: ApiUrl = "",
    models: Models = None,
    prices: Prices = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Stake, register and set prices; run again, it goes on where it was interrupted."""
    from nodeapp.cli.host_change import Consent, Overrides, change

    overrides = Overrides(
        from_settings=True,
        is_registration=True,
        api_url=api_url,
        models=tuple(models or ()),
        prices=tuple(prices or ()),
    )
    change(chain_settings_of(config, state_dir, flags), overrides, Consent(yes, dry_run, as_json))


def update(  # noqa: PLR0913, PLR0917  # one argument an option
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    api_url: ApiUrl = "",
    stake: Stake = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Bring the listing to what the settings (chain.listing_...) and options say."""
    from nodeapp.cli.host_change import Consent, Overrides, change

    overrides = Overrides(from_settings=True, api_url=api_url, stake=stake)
    change(chain_settings_of(config, state_dir, flags), overrides, Consent(yes, dry_run, as_json))


def withdraw(  # one argument an option
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    asset: Asset = "all",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Pull the credited earnings now, to chain.payout_address or the host account."""
    from nodeapp.cli.host_change import Consent, say, withdraw
    from nodeapp.cli.host_text import done_json, done_line

    done = withdraw(chain_settings_of(config, state_dir, flags), asset, Consent(yes))
    say([done_json((), done)] if as_json else map(done_line, done))


def unregister(  # one argument an option
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    yes: Yes = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Leave the marketplace; the stake comes back to the host account."""
    from nodeapp.cli.host_change import Consent, leave, say
    from nodeapp.cli.host_text import done_json, done_line

    done = leave(chain_settings_of(config, state_dir, flags), Consent(yes), force=force)
    say([done_json((), (done,)) if as_json else done_line(done)])


def models_list(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Print the listed models, whether they are approved, and their prices."""
    from nodeapp.cli.host_change import names_of, read_view, say
    from nodeapp.cli.host_text import model_lines, models_json, named

    settings = chain_settings_of(config, state_dir, flags)
    view = read_view(settings)
    say([models_json(view)] if as_json else named(model_lines(view), names_of(settings, view)))


def models_add(  # noqa: PLR0913, PLR0917  # one argument an option
    model: ModelArgument,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    prices: Prices = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """List one model more; with --price it is for sale at once."""
    from nodeapp.cli.host_change import Consent, Overrides, change

    overrides = Overrides(add_models=(model,), prices=tuple(prices or ()))
    change(chain_settings_of(config, state_dir, flags), overrides, Consent(yes, dry_run, as_json))


def models_remove(  # noqa: PLR0913, PLR0917  # one argument an option
    model: ModelArgument,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take a model off the list and clear its prices."""
    from nodeapp.cli.host_change import Consent, Overrides, change

    overrides = Overrides(remove_models=(model,))
    change(chain_settings_of(config, state_dir, flags), overrides, Consent(yes, dry_run, as_json))


def price_list(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Print every price, per million tokens and as the chain writes it."""
    from nodeapp.cli.host_change import names_of, read_view, say
    from nodeapp.cli.host_text import models_json, named, price_lines

    settings = chain_settings_of(config, state_dir, flags)
    view = read_view(settings)
    say([models_json(view)] if as_json else named(price_lines(view), names_of(settings, view)))


def price_set(  # noqa: PLR0913, PLR0917  # one argument an option
    model: AnyModel,
    amount: Amount,
    native: Native = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Set a price; it counts for sessions opened from then on."""
    from nodeapp.cli.host_change import Consent, Overrides, change

    overrides = Overrides(prices=(f"{model} {amount} {'native' if native else 'usd'}",))
    change(chain_settings_of(config, state_dir, flags), overrides, Consent(yes, dry_run, as_json))


def price_clear(  # noqa: PLR0913, PLR0917  # one argument an option
    model: AnyModel,
    native: Native = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take a model off sale in USD (or native coin); open sessions are not touched."""
    from nodeapp.cli.host_change import Consent, Overrides, change

    overrides = Overrides(off_sale=((model, native),))
    change(chain_settings_of(config, state_dir, flags), overrides, Consent(yes, dry_run, as_json))


def price_suggest(  # noqa: PLR0913, PLR0917  # one argument an option
    electricity_per_kwh: Electricity,
    model: OneModel = "",
    watts: Figure = "",
    tokens_per_second: Figure = "",
    usd_per_hour: UsdPerHour = "",
    measure_seconds: MeasureSeconds = 10.0,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    apply: Apply = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Suggest a price in USD from what tokens cost here and what other hosts ask."""
    from nodeapp.cli.host_change import Consent
    from nodeapp.cli.host_suggest import Given, run

    given = Given(
        model, electricity_per_kwh, watts, tokens_per_second, usd_per_hour, measure_seconds
    )
    run(
        chain_settings_of(config, state_dir, flags),
        given,
        apply=apply,
        consent=Consent(yes=yes, as_json=as_json),
    )
