"""Stop words of the six languages of the paper: words that stand in texts about anything, in small letters."""

_TEXTS = {
    "en": """
        a about above after again all also am among an and any are as at be because been before being below between both
        but by can could did do does doing down during each either else ever few for from further had has have having he
        her here hers herself him himself his how however i if in into is it its itself just may me might more most must
        my myself neither no nor not now of off on once one only or other our ours ourselves out over own per rather
        same she should since so some such than that the their theirs them themselves then there therefore these they
        this those though through thus to too under until up upon us very was we were what when where whether which
        while who whom whose why will with within without would yet you your yours yourself yourselves
    """,
    "fr": """
        à ai aie ainsi alors après as au aucun aussi autre aux avait avant avec avoir car ce cela celle celui ces cet
        cette ceux chaque chez comme comment dans de depuis des donc dont du elle elles en encore entre est et étaient
        était été être eu eux fait fut il ils je jusque la le les leur leurs lors lui ma mais me même mes moi moins mon
        ne ni non nos notre nous on ont or ou où par parce pas pendant peu plus pour pourquoi puis quand que quel quelle
        quelles quels qui sa sans se selon sera ses si sien soit son sont sous sur ta te tes toi ton tous tout toute
        toutes très tu un une vers vos votre vous y
    """,
    "ru": """
        а без более больше бы был была были было быть в вам вас весь во вот все всех всё вы где да даже для до его ее
        если есть ещё еще её же за здесь и из или им их к как какая какой когда которая которые который кто ли либо
        между меня мне может мы на над надо нас не него неё нее нет ни них но ну о об однако он она они оно от очень по
        под после при с сам со так также такой там тем то того тоже только том тот ту ты у уже чего чей чем что чтобы
        эта эти это этого этот я
    """,
    "ar": """
        إذا إذ إلا إلى أم أما أن أنا أنت أنه أنها أو أي أيضا أين بل بعد بعض بما بن به بها بين تلك ثم حتى حول حيث خلال
        ذلك سوف على عليه عليها عن عند عندما غير في فيه فيها قبل قد كان كانت كل كما كيف لا لأن لدى لقد لكن لم لما لماذا
        لن له لها ليس ليست ما ماذا متى مع من منذ منه منها نحن نحو هذا هذه هل هم هنا هناك هو هي و وقد وهو وهي يكون
    """,
    "ja": """
        あの あり ある あれ い いう いる う うち え お および おり か かつて から が き ここ こと この これ さ さらに し
        した して しかし する ず せ そして その それ それぞれ た ただし だ だった だけ つ て で でき できる です では
        でも と という といった とき ところ として とも と共に どの な ない なお なかっ ながら なく なっ など なら なる
        に において における について にて によって により による に対して に対する に関する の ので のみ は ば へ ほか
        ほとんど また または まで ます も もの や よう より ら られ られる る れ れる を ん
    """,
    "zh": """
        一个 上 下 不 与 且 两 个 中 为 之 也 了 于 从 他 他们 以 以及 们 但 但是 你 使 其 再 到 即 却 又 及 只 可 吗 同
        后 向 吧 呢 和 因 因为 在 如 如果 她 它 它们 对 对于 将 就 并 并且 很 得 或 或者 所 所以 把 时 是 更 最 有 来 某
        此 每 没 没有 然后 用 由 的 着 而 而且 能 自 自己 至 若 被 要 让 该 说 起 跟 较 过 还 这 这个 这些 那 那个 那些
        都 里 除 需 非 哪 哪个 哪里 什么 谁 怎么 为什么
    """,
}

STOP_WORDS = {code: frozenset(text.split()) for code, text in _TEXTS.items()}
"""By language code."""

ALL_STOP_WORDS = frozenset().union(*STOP_WORDS.values())
