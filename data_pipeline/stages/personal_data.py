"""Masks e-mail addresses, public IP addresses and phone numbers.

What is found is what has the form, not what is a person's. A version number of four parts that is a public IPv4 address
is taken for one, unless something says so, as in v8.8.8.8, curl/8.8.8.8 and version 8.8.8.8. Phone numbers are found
conservatively: a plus sign and a country code, or grouped as they are written in North America, Britain, Ireland,
Australia, France or Germany. Digits in one run without a plus sign are never taken for a phone number.

Every pattern takes time linear in the text: a match begins only where a run of its characters does or at a digit, and
what follows is bounded.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from data_pipeline.documents import Document, StageFunction, Tally

HISTOGRAM = "personal data"

_LOCAL = "A-Za-z0-9._%+À-ÖØ-öø-ɏ-"
_LABEL = "A-Za-z0-9À-ÖØ-öø-ɏ-"
_EMAIL = re.compile(rf"(?<![{_LOCAL}])[{_LOCAL}]{{1,64}}@(?:[{_LABEL}]{{1,63}}\.){{1,8}}[A-Za-z]{{2,24}}(?![{_LABEL}])")

# These begin with plain sets of characters, which are quick to look for; what may not stand before one is looked for
# once it is found.
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w-])(?!\.[0-9])")
_NOT_BEFORE_IPV4 = re.compile(r"(?:[\w.]|\w[/-]|version )\Z", re.IGNORECASE)
#: In 2000::/3, where all public ones are, with the first two groups written out.
_IPV6 = re.compile(r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{0,30}[0-9A-Fa-f:](?<!(?<!:):)(?!\w)")
_NOT_BEFORE_IPV6 = re.compile(r"[\w.:]\Z")

#: What every phone number below contains.
_NINE_DIGITS = re.compile(r"[+(0-9](?:[ \xa0.()/-]{0,3}[0-9]){8}")
_PHONE = re.compile(
    r"""
    (?<![\w.+/-])
    (?: (?P<international> \+[2-9] (?: (?: [ \xa0./-] | [ \xa0]?[(] | [)][ \xa0-]? | [ ]/[ ] )? [0-9] ){7,12} )
      | (?: \+1(?P<s>[ \xa0.-]?)[2-9][0-9]{2}(?P=s)[2-9][0-9]{2}(?P=s)[0-9]{4}
          | (?:\+?1[ \xa0.-])? (?: \([2-9][0-9]{2}\)[ \xa0.-]?[2-9][0-9]{2}[ \xa0.-]
                                 | [2-9][0-9]{2}(?P<t>[.-])[2-9][0-9]{2}(?P=t)
                                 | [2-9][0-9]{2}[ \xa0][2-9][0-9]{2}- ) [0-9]{4}
        ) (?: [ ]?(?:x|ext\.?)[ ]?[0-9]{1,5} )?
      | \(0[1-9][0-9]{0,3}\)[ \xa0]?[0-9]{3,4}[ \xa0-]?[0-9]{3,4}
      | (?P<bare> (?<![0-9][ ])
          (?: 0[1-9](?P<pair>[ \xa0.-])[0-9]{2} (?:(?P=pair)[0-9]{2}){3} (?!(?P=pair)[0-9]{2}\b)
            | 0[1-9][0-9]{1,3}(?P<trunk>[ \xa0-])[0-9]{3,4}(?P=trunk)[0-9]{3,4} (?![ \xa0][0-9]{3})
            | 0[1-9][0-9]{1,3}[ \xa0/][0-9]{5,8} (?![ \xa0][0-9]{3})
          )
        )
    ) (?!\w)(?![./:-][0-9])(?!-\w)
    """,
    re.VERBOSE,
)
_DIGITS = re.compile("[0-9]+")


@dataclass
class PersonalDataConfig:
    """What is masked, and what stands in its place."""

    emails: bool = True
    """Masks e-mail addresses."""
    ip_addresses: bool = True
    """Masks public IPv4 and IPv6 addresses; private, loopback, documentation and multicast addresses stay."""
    phone_numbers: bool = True
    """Masks phone numbers."""
    email_placeholder: str = "<EMAIL>"
    """Takes the place of an e-mail address."""
    ip_placeholder: str = "<IP>"
    """Takes the place of an IP address."""
    phone_placeholder: str = "<PHONE>"
    """Takes the place of a phone number."""


def personal_data(config: PersonalDataConfig) -> StageFunction:
    """The stage: masks, and drops nothing; the histogram "personal data" counts the documents with each kind."""

    def stage(documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
        for document in documents:
            document.text, kinds = mask(document.text, config)
            for kind in kinds:
                tally.observe(HISTOGRAM, kind)
            yield document

    return stage


def mask(text: str, config: PersonalDataConfig) -> tuple[str, list[str]]:
    """The masked text, and which of "e-mail address", "IP address" and "phone number" it had."""
    kinds = []
    # Phone numbers come last, so that no part of an address can be taken for one.
    if config.emails and "@" in text:
        masked = _replace(_EMAIL, text, config.email_placeholder, lambda match: True)
        if masked != text:
            text = masked
            kinds.append("e-mail address")
    if config.ip_addresses:
        masked = _replace(_IPV4, text, config.ip_placeholder, _is_public_ipv4)
        masked = _replace(_IPV6, masked, config.ip_placeholder, _is_public_ipv6)
        if masked != text:
            text = masked
            kinds.append("IP address")
    if config.phone_numbers and _NINE_DIGITS.search(text):
        masked = _replace(_PHONE, text, config.phone_placeholder, _is_phone_number)
        if masked != text:
            text = masked
            kinds.append("phone number")
    return text, kinds


def _replace(pattern: re.Pattern[str], text: str, placeholder: str, is_meant: Callable[[re.Match[str]], bool]) -> str:
    return pattern.sub(lambda match: placeholder if is_meant(match) else match.group(), text)


def _is_public_ipv4(match: re.Match[str]) -> bool:
    return _is_public(match.group()) and not _stands_after(_NOT_BEFORE_IPV4, match)


def _is_public_ipv6(match: re.Match[str]) -> bool:
    return _is_public(match.group()) and not _stands_after(_NOT_BEFORE_IPV6, match)


def _is_public(address_text: str) -> bool:
    try:
        address = ipaddress.ip_address(address_text)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


def _stands_after(before: re.Pattern[str], match: re.Match[str]) -> bool:
    return before.search(match.string[max(0, match.start() - 8) : match.start()]) is not None


def _is_phone_number(match: re.Match[str]) -> bool:
    number = match.group()
    groups = _DIGITS.findall(number)
    if match["international"]:
        if len(groups) == 1:
            return len(groups[0]) >= 10
        # None of these: one figure after another, a decimal fraction, thousands set apart by dots.
        figures = sum(len(group) == 1 for group in groups[1:])
        dots = number.count(".")
        return figures <= 2 and dots != 1 and not (dots > 1 and all(len(group) == 3 for group in groups[1:]))
    if match["pair"]:  # not a list of numbers in order, such as the pages of a result
        return not all(0 < int(b) - int(a) < 10 for a, b in itertools.pairwise(groups))
    if match["bare"]:  # not a list of zero-padded numbers
        return groups[1][0] != "0" and sum(map(len, groups)) >= (10 if match["trunk"] else 9)
    return True
