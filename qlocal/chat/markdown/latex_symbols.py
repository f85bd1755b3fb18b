"""LaTeX commands as Unicode characters: tables, no code."""

from __future__ import annotations


def _paired(names: str, characters: str) -> dict[str, str]:
    return dict(zip(names.split(), characters, strict=True))


def _listed(pairs: str) -> dict[str, str]:
    words = pairs.split()
    return dict(zip(words[::2], words[1::2], strict=True))


_GREEK = {
    **_paired("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu", "αβγδεζηθικλμ"),
    **_paired("nu xi omicron pi rho sigma tau upsilon phi chi psi omega", "νξοπρστυφχψω"),
    **_paired("Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega", "ΓΔΘΛΞΠΣΥΦΨΩ"),
    **_paired("varepsilon vartheta varpi varrho varsigma varphi", "ϵϑϖϱςφ"),
}
_OPERATORS = _listed("""
    times × div ÷ cdot · cdots ⋯ ldots … dots … vdots ⋮ ddots ⋱ pm ± mp ∓ ast ∗ star ⋆ circ ∘ bullet • oplus ⊕ ominus ⊖
    otimes ⊗ odot ⊙ wedge ∧ land ∧ vee ∨ lor ∨ neg ¬ lnot ¬ cap ∩ cup ∪ setminus ∖ dagger † sum ∑ prod ∏ coprod ∐ int ∫
    iint ∬ iiint ∭ oint ∮ bigcup ⋃ bigcap ⋂ bigoplus ⨁ bigotimes ⨂ nabla ∇ partial ∂ infty ∞ surd √ angle ∠ triangle △
    square □ Box □ blacksquare ■ degree ° prime ′ hbar ℏ ell ℓ Re ℜ Im ℑ aleph ℵ wp ℘ emptyset ∅ varnothing ∅ forall ∀
    exists ∃ nexists ∄ therefore ∴ because ∵ top ⊤ bot ⊥ checkmark ✓ imath ı jmath ȷ
""")
_RELATIONS = _listed("""
    leq ≤ le ≤ geq ≥ ge ≥ neq ≠ ne ≠ approx ≈ equiv ≡ sim ∼ simeq ≃ cong ≅ propto ∝ ll ≪ gg ≫ prec ≺ succ ≻ preceq ⪯
    succeq ⪰ in ∈ notin ∉ ni ∋ subset ⊂ supset ⊃ subseteq ⊆ supseteq ⊇ subsetneq ⊊ perp ⊥ parallel ∥ mid ∣ nmid ∤
    models ⊨ vdash ⊢ dashv ⊣ asymp ≍ doteq ≐ triangleq ≜ coloneqq ≔
""")
_ARROWS = _listed("""
    to → rightarrow → leftarrow ← gets ← leftrightarrow ↔ Rightarrow ⇒ Leftarrow ⇐ Leftrightarrow ⇔ implies ⟹
    impliedby ⟸ iff ⟺ mapsto ↦ longrightarrow ⟶ longleftarrow ⟵ longmapsto ⟼ Longrightarrow ⟹ uparrow ↑ downarrow ↓
    updownarrow ↕ Uparrow ⇑ Downarrow ⇓ hookrightarrow ↪ rightharpoonup ⇀ rightleftharpoons ⇌ nearrow ↗ searrow ↘
    xrightarrow →
""")
_DELIMITERS = _listed(r"""
    langle ⟨ rangle ⟩ lfloor ⌊ rfloor ⌋ lceil ⌈ rceil ⌉ lvert | rvert | lVert ‖ rVert ‖ vert | Vert ‖ lbrace { rbrace }
    lbrack [ rbrack ] backslash \ { { } } | ‖ % % $ $ & & # # _ _
""")
_SPACES = {",": " ", ";": " ", ":": " ", " ": " ", "!": "", "quad": "  ", "qquad": "    ", "thinspace": " "}
_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim limsup liminf max min sup inf "
    "arg argmax argmin det dim ker gcd lcm deg hom Pr mod"
)
SYMBOLS: dict[str, str] = {
    **_GREEK,
    **_OPERATORS,
    **_RELATIONS,
    **_ARROWS,
    **_DELIMITERS,
    **_SPACES,
    **{name: name for name in _NAMES.split()},
    "bmod": "mod",
}
"""Command without its backslash -> what is shown."""

_SIZES = (
    "left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr displaystyle textstyle scriptstyle limits "
    "nolimits nonumber notag hline"
)
DROPPED = frozenset(_SIZES.split())
"""Commands that only change how large or where something stands."""

_PLAIN_TEXT = "text textbf textit textrm mathrm mathbf mathit mathsf mathtt operatorname boldsymbol bm mbox"
TEXT = frozenset(_PLAIN_TEXT.split())
"""Commands whose argument is words, or letters in another type."""

SUPERSCRIPTS = dict(
    zip(
        "0123456789+-=()abcdefghijklmnoprstuvwxyzABDEGHIJKLMNOPRTUVWαβγδεθιφχ",
        "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂᵅᵝᵞᵟᵋᶿᶥᵠᵡ",
        strict=True,
    )
) | {"′": "′", "∗": "*", "*": "*", "∘": "°", "⊤": "ᵀ", "†": "†"}
SUBSCRIPTS = dict(zip("0123456789+-=()aehijklmnoprstuvxβγρφχ", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓᵦᵧᵨᵩᵪ", strict=True))
ACCENTS = {
    name: mark
    for mark, names in {
        "\u0300": "grave",
        "\u0301": "acute",
        "\u0302": "hat widehat",
        "\u0303": "tilde widetilde",
        "\u0304": "bar",
        "\u0305": "overline",
        "\u0306": "breve",
        "\u0307": "dot",
        "\u0308": "ddot",
        "\u030c": "check",
        "\u0332": "underline",
        "\u20d7": "vec",
    }.items()
    for name in names.split()
}
"""Command -> the character that combines with the one before it."""
BLACKBOARD = dict(zip("CHNPQRZ1EFKI", "ℂℍℕℙℚℝℤ𝟙𝔼𝔽𝕂𝕀", strict=True))
FRACTIONS = _paired("1/2 1/3 2/3 1/4 3/4 1/5 1/6 1/8 3/8", "½⅓⅔¼¾⅕⅙⅛⅜")
