"""How chat models word a choice, as patterns: what calls a letter the answer, what denies it, what joins two."""

from __future__ import annotations

import re

#: "A. a dog", "(A) a dog", "A) a dog": the letter that an option may carry.
LABEL = re.compile(r"^\s*\(?([A-Z])[.):]\s+")
#: A letter that is no part of a word, in brackets or not.
LETTER = re.compile(
    r"(?<![a-zA-ZÀ-ɏ0-9_&+#-])(?<![a-zA-Z]['’])([(\[{]?)([A-Za-z])([)\]}]?)(?![a-zA-ZÀ-ɏ0-9_&+#]|['’][a-zA-Z]|-\w)"
)
CALLED = (
    r"(?:\s|is|are|was|would|should|must|will|be|to|seems|the|therefore|thus|clearly|definitely|probably|likely|most|"
)
CALLED += r"option|choice|letter|answer|candidate|number|indeed|[:：=,.\"'“‘>→|-]|–|—|是|为|應該|应该|应|选项|選項)*$"
#: What calls a letter the answer, up to that letter.
ANSWER = re.compile(
    r"(?:\b(?:answer|ans|solution|conclusion|verdict|response)\b|\b(?:correct|right|best|true|final|chosen|likely)\s+"
    r"(?:option|choice|one|letter|candidate)\b|\bcorrect(?=\s*[:=])|\b(?:option|choice|statement)(?=\s+(?:that|which)\b)|\b(?:choose|chose|chosen|pick|picked|select|selected|opt\s+for|"
    r"go(?:ing)?\s+with|vote\s+for|settle\s+(?:on|for)|mark|say)\b|答案|[选選](?:择|擇|项|項)?)"
    r"(?:\s+(?:of|to|for|in|about|that|which|matching|describing|given|based)\b[^.;:!?\n]{0,60}?\s(?=is\b|would\b|must\b|should\b))?"
    + CALLED,
    re.IGNORECASE,
)
#: What calls it an option, or leads to it with no more ado ("It must be B").
OPTION = re.compile(
    r"\b(?:option|choice|letter|candidate)" + CALLED + r"|"
    r"\b(?:it|that|this|so|hence|thus|therefore|think|believe|guess|maybe|perhaps|probably|definitely|certainly|surely|"
    r"clearly|obviously|likely|leaves|leaving|left\s+with|leaves\s+us\s+with|elimination|remains|it['’]?s|that['’]?s|sure|(?<!not\s)only|(?:must|should)\s+be|"
    r"(?:has|have|had|got)\s+to\s+be)"
    + CALLED
    + r"|[→∴]\s*$|[-=]>\s*$|(?:^|\n)\s*(?:yes|yeah|ok|okay|alright|right|well|ah|oh)\b[\s,.:!-]*$",
    re.IGNORECASE,
)
DENIED = re.compile(
    r"(?:n['’]t|\b(?:not|never|nor|neither|than|instead\s+of|rather\s+than|except(?:\s+for)?|excluding|unlike|without|against|"
    r"(?:rules?|ruled|ruling)\s+out|eliminat(?:es?|ed|ing)|(?:any|every)thing\s+but|all\s+but|cannot|(?:incorrect|wrong)\s*[:=]|不是|不选))\s*(?:be\s+)?"
    r"(?:(?:the|answer|option|choice|letter)\s+)*$",
    re.IGNORECASE,
)
#: The same from further away: "I would never choose", "I doubt it's", "I don't think the answer is", "people may say".
DENIED_FAR = re.compile(
    r"(?:n['’]t|\b(?:not|never|hardly|unlikely|(?<!no\s)(?<!a\s)(?<!any\s)doubt(?:s|ed|ful)?)|"
    r"\b(?:people|some|others|many|one|you|they|someone)\s+(?:may|might|could|would|will|can)\s+(?:say|think|choose|pick|answer)|"
    r"although|though|while|whereas|even\s+if|at\s+first(?:\s+i\s+\w+)?|i\s+(?:first|initially|originally)\s+\w+)\s+"
    r"(?:(?:ever|be|to|say|think|believe|choose|pick|select|go|going|with|opt|vote|for|mark|call|consider|sure|certain|"
    r"convinced|clear|whether|if|it|it['’]s|its|is|was|that|this|that['’]s|the|case|option|choice|answer|letter|correct|"
    r"right|best|would|could|should|can|really|actually|likely|probably|even|as|my)\s+)*[\"'“‘(\[]?$",
    re.IGNORECASE,
)
#: Behind a letter: what was thought first, or would hold if things were otherwise.
OVERRULED = re.compile(
    r"\s*,?\s*(?:(?:is|was)\s+(?:what\s+i\s+|my\s+)?(?:first|initial|original|tempting)|but\s+only\s+if\b|"
    r"(?:looks|seems|sounds)\s+\w+\s*,?\s*(?:but|yet|though)\b|"
    r"(?:only\s+)?(?:if|unless|had\s+there)\s+(?!(?:i|we|you|forced|asked|pressed|anything|not)\b))",
    re.IGNORECASE,
)
#: "A: wrong. B: right.": a verdict behind a colon, where another letter has one as well; else it may be the text.
WRONG_LISTED = re.compile(
    r"\s*[:=]\s*(?:wrong|incorrect|false|no|not\s+\w+)\b(?=.*\b[A-Z]\s*[:=]\s*(?:\w+ly\s+)?(?:wrong|incorrect|false|not|no|"
    r"right|correct|true|yes)\b)",
    re.IGNORECASE | re.DOTALL,
)
#: What comes after "The answer is A. Wait, actually" is the answer.
ACTUALLY = re.compile(
    r"[.!?\n]\s*(?:(?:no|wait|hmm|sorry|oh|but)\b[\s,.!—-]*)*actually\b[\s,:]*(?P<no>no\W*$)?", re.IGNORECASE
)
#: An option by its number: "Option 2", "The second option".
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
BY_NUMBER = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|right\s+|final\s+)?answer\s*(?:is|:)\s*)?(?:the\s+)?(?:(?:option|choice)\s+(?:number\s+)?([1-9])|"
    rf"({'|'.join(ORDINALS)})\s+(?:option|choice|one))\s*[.!]?",
    re.IGNORECASE,
)
#: "No" that is no answer.
IDIOM = re.compile(
    r"\b(?:(?:there\s+is\s+|there['’]s\s+)?(?:no|without\s+(?:a|any))\s+(?:doubt|question)\b(?:\s+(?:about\s+it|that))?|"
    r"(?:i\s+have\s+)?no\s+(?:idea|clue)\b)\s*[,.:;!-]*\s*",
    re.IGNORECASE,
)
#: Of a list: "neither A, C nor D", "it can't be A or C".
DENIED_TOO = re.compile(
    r"(?i:n['’]t\s+be|\b(?:neither|cannot\s+be|eliminat(?:es?|ed|ing)|rul(?:es?|ed|ing)\s+out|except|excluding))\s+"
    r"(?:[(\[]?[A-Z][)\]]?\s*(?:,\s*(?:and|or|nor)?|and|or|nor|/|&)\s*)+$"
)
WRONG = re.compile(
    r"\s*(?:(?:is|are|was|seems|looks|sounds|would\s+be|can|could|does|do|has|must)\s+)?(?:(?:very|highly|clearly|rather)\s+)?(?:(?:not|never)\b(?!\s+[(\[]?[A-Z]\b)|"
    r"(?:wrong|incorrect|false|impossible|implausible|unlikely|improbable|doubtful|unconvincing)\b|out\b|ruled\s+out|eliminated|excluded|cannot\b|[✗✘❌]|"
    r"(?:is|are|was|does|do|can|could|would|has|wo)n['’]t\b)",
    re.IGNORECASE,
)
#: What may follow a letter that an answer begins with; anything else makes "A" an article and "B" the start of a name.
GOES_ON = re.compile(
    r"\s*(?:$|[.,;:!?)\]/|(\n]|[-–—]+\s)|\s+(?:because|since|as|for|given|due|based|therefore|i\s+(?:think|guess|believe)|it|this|that|the|an?|there|they|"
    r"he|she|is\s+(?:the\b|correct|right|true|best|my\b|what|most)|seems|looks|would|must|should|not|rather|"
    r"instead|over|fits|but|and|or|best\s+\w+s|only\W*$|(?:matches|describes|captures|answers|explains|represents|reflects))\b",
    re.IGNORECASE,
)
#: What makes an "A" behind it a letter.
CALLS = re.compile(r"\b(?:option|choice|letter|answer)\s+$", re.IGNORECASE)
NAME_OF_I = re.compile(r"\s*(?:$|[.:)\]]\s*(?:$|\n|[A-Z])|\n)")
#: From a letter that is denied to the one that stands for it: "not A but B".
INSTEAD = re.compile(
    r"\s*[,;:.]?\s*(?:(?:but|yet|however|rather|so|hence|it\s+is|it['’]s|is|the|option|answer|choice|correct|right)\s+)*",
    re.IGNORECASE,
)
RIGHT = re.compile(
    r"\s+(?:is|fits|matches|seems|looks|would\s+be|must\s+be)\s+(?:the\s+)?(?:most\s+)?"
    r"(?:best|better|correct|right|accurate|answer|likely|true|one)\b|"
    r"\s+(?:best|most\s+\w+ly)\s+\w+s\b|\s+(?:matches|describes|captures|answers|explains|summarizes|represents|reflects)\b|"
    r"\s+(?:only|then)\W*$|\s*:\s*(?:right|correct|true|yes)\b",
    re.IGNORECASE,
)
#: Somebody who thinks better of it.
CORRECTED = re.compile(r"\S[\s,.]{0,5}\b(?:no|wait|actually|sorry|correction|hmm)\b\s*[,.:!—-]", re.IGNORECASE)
JOINT = re.compile(
    r"\s*(?:[.?!]\s*\b(?:or|and)\b|,|/|\||&|\+|;|\bor\b|\band\b|或|和|、)[\s,]*"
    r"(?:(?:or|and|maybe|perhaps|possibly|even|also|option|choice|both|either)[\s,]+)*",
    re.IGNORECASE,
)
#: Behind a list of letters that are all wrong: "A and B are", "A, B, and D can't".
PLURAL = re.compile(
    r"\s*(?:are|were|aren['’]t|weren['’]t|do|don['’]t|have|haven['’]t|look|seem|can|can['’]t|cannot)\b", re.IGNORECASE
)
#: The end of a line that says of its option that it is right.
VERDICT = re.compile(r"[^\n]*?(?:(?<!not\s)\b(?:correct|right|yes)\b|[✓✔✅])\W*?(?=\n|$)", re.IGNORECASE)
#: Options of one line, each with a mark behind it: "A ✗ B ✓ C ✗". They are read as lines.
MARKED = re.compile(r"\s*(?:[(\[]?[A-Z]\b[^\n✓✔✅✗✘❌]*[✓✔✅✗✘❌]\ufe0f?[\s,;.|]*){2,}")
MARK = re.compile(r"([✓✔✅✗✘❌]\ufe0f?)[\s,;.|]*")
#: Before the letter of a line of its own.
LINE = re.compile(r"(?:^|\n)[\s>•-]*[(\[]?$")
ALONE_BEFORE, ALONE_AFTER = re.compile(r"(?:^|[.!?\n:])\s*$"), re.compile(r"\s*(?:$|[.!?]\s*(?:$|\n)|\n)")
DENYING_WORDS = frozenset(
    ["not", "no", "never", "nor", "neither", "without", "isnt", "arent", "wasnt", "cannot", "except"]
)
#: Behind an option's text, in :func:`normalize_answer`'s words: it is not there.
ABSENT = re.compile(
    r"\s+(?:isnt|arent|wasnt|werent|(?:is|are|was|were)\s+(?:not|never)|cannot\s+be|cant\s+be)\s+"
    r"(?:there|visible|shown|present|seen|in|answer|correct|right|option|mentioned|depicted)\b"
)
PREAMBLE = re.compile(
    r"^(?:so|thus|therefore|hence|well)?,?\s*(?:(?:the|my)\s+)?(?:(?:final|correct|best|right)\s+)*"
    r"(?:(?:answer|option|choice)(?:\s+is|\s*[:=])*|it\s+is|it['’]s|this\s+is|that\s+is|they\s+are|i\s+see|"
    r"there\s+is|there\s+are)\s*[:,]?\s+",
    re.IGNORECASE,
)
