"""What the stories are made of: names, objects and sentences, English and Chinese. Data only.

The LAST QUARTER of every list is reserved: no training data, only the robustness suites use it.
So a list has a length that four divides, and new entries change which ones are reserved.

Fields of a template (filled by stories.py):
    {name}                          Mia                  小红
    {he} {him} {his}, {He} {His}    she her her          她
    {n}      the operand            5                    5
    {k}      counted noun           5 apples / 1 apple   5个苹果
    {c}      counted, zh only                            5个
    {m}      measure word, zh only                       个
    {things} the plural             apples               苹果
    {word}   the operand in words   doubles / half       两倍 / 一半
A sentence must tell its operation and its operand alone, and must leave the counted things with the
person of the opening: what {name} has is the running total.
"""

NAMES = {
    "en": """Mia she, Tom he, Anna she, Ben he, Lucy she, Sam he, Emma she, Jack he, Nina she,
        Paul he, Rosa she, Leo he, Kate she, Max he, Julia she, Adam he, Sara she, Oscar he,
        Lily she, David he, Ella she, Peter he, Zoe she, Mark he,
        Clara she, Hugo he, Grace she, Felix he, Ivy she, Omar he, Tess she, Victor he""",
    "zh": """小红 她, 小明 他, 小丽 她, 小刚 他, 小芳 她, 小军 他, 小梅 她, 小强 他, 小兰 她, 小亮 他,
        小燕 她, 小杰 他, 小玲 她, 小波 他, 小雪 她, 小龙 他, 小云 她, 小东 他, 小雨 她, 小华 他,
        小静 她, 小宇 他, 小娟 她, 小林 他,
        阿珍 她, 大伟 他, 晓彤 她, 建国 他, 雅琴 她, 志远 他, 思思 她, 浩然 他""",
}

# en: singular and plural; zh: measure word and noun
OBJECTS = {
    "en": """apple apples, pear pears, coin coins, stamp stamps, book books, card cards,
        shell shells, stone stones, button buttons, ball balls, toy toys, key keys, cup cups,
        egg eggs, nut nuts, pencil pencils, bead beads, sticker stickers, cookie cookies,
        flower flowers, ring rings, plum plums, badge badges, marble marbles,
        leaf leaves, berry berries, brush brushes, lemon lemons, candle candles, spoon spoons,
        peach peaches, ticket tickets""",
    "zh": """个 苹果, 个 梨, 枚 硬币, 张 邮票, 本 书, 张 卡片, 枚 贝壳, 块 石头, 颗 纽扣, 个 球,
        个 玩具, 把 钥匙, 个 杯子, 个 鸡蛋, 颗 核桃, 支 铅笔, 颗 珠子, 张 贴纸, 块 饼干, 朵 花,
        个 气球, 颗 糖, 枚 徽章, 颗 弹珠,
        片 树叶, 颗 草莓, 把 刷子, 个 柠檬, 根 蜡烛, 把 勺子, 个 桃子, 条 丝带""",
}

WORDS = {  # {word}: operands 2 to 5
    ("en", "mul"): {2: "doubles", 3: "triples", 4: "quadruples", 5: "quintuples"},
    ("en", "div"): {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"},
    ("zh", "mul"): {2: "两倍", 3: "三倍", 4: "四倍", 5: "五倍"},
    ("zh", "div"): {2: "一半", 3: "三分之一", 4: "四分之一", 5: "五分之一"},
}

TEMPLATES = {}

TEMPLATES["en"] = {
    "opening": """
        {name} has {k}.
        {name} starts with {k}.
        At first, {name} has {k}.
        {name} owns {k}.
        There are {k} in {name}'s bag.
        {name} keeps {k} in a box.
        {name} has a bag with {k}.
        In the morning, {name} has {k}.
        {name} has collected {k}.

        Today {name} begins with {k}.
        On {name}'s shelf there are {k}.
        {name} counts {k} on a desk.""",
    "add": """
        {He} buys {n} more.
        {He} finds {k}.
        {He} gets {n} more.
        A friend gives {him} {n} more.
        {His} mother brings {him} {n} more.
        Then {he} adds {n}.
        {He} receives {k} as a gift.
        {He} wins {n} more.
        {He} picks up {n} more.
        {He} collects {n} more.
        A neighbor hands {him} {k}.
        Next, {he} is given {n}.

        The mail brings {him} {n} more.
        {He} earns {k}.
        {His} aunt sends {him} {k}.
        {He} puts {n} more with them.""",
    "sub": """
        {He} gives away {n}.
        {He} loses {n}.
        {He} sells {n}.
        {He} gives {n} to a friend.
        {He} gives {k} to {his} brother.
        Then {he} throws away {n}.
        A friend takes {n} of them.
        {He} sends {k} to {his} uncle.
        {He} uses up {n}.
        {He} hands {n} to a neighbor.
        Next, {he} removes {n}.
        {He} sells {k} to a shop.

        {He} donates {n}.
        A thief steals {n} of them.
        {He} passes {n} to {his} teacher.
        {He} drops {k} into a river.""",
    "mul": """
        Then {he} has {n} times as many.
        The number becomes {n} times as large.
        {He} {word} the number.
        {He} makes it {n} times as many.
        A wizard multiplies them by {n}.
        {He} trades each one for {n} others.
        Each one turns into {n}.
        {He} works until {he} has {n} times as many.
        After a trade, {he} has {n} times as many.
        The number is multiplied by {n}.
        {He} swaps each one for {n} new ones.
        Soon the number is {n} times as big.

        {His} count rises to {n} times what it was.
        {He} exchanges every single one for {n}.
        A magic hat {word} their number.
        A machine multiplies the total by {n}.""",
    "div": """
        {He} makes {n} equal piles and keeps one pile.
        {He} keeps only {word} of them.
        {He} divides them by {n} and keeps one part.
        The number is divided by {n}.
        {He} splits them {n} ways and keeps one share.
        {He} fills {n} equal bags and keeps one bag.
        {He} makes {n} equal groups and keeps one group.
        {He} packs {n} equal boxes and keeps one box.
        {He} trades every {n} of them for one.
        A wizard divides them by {n}.
        The number drops to {word}.
        {n} people share them equally, and {he} is one of them.

        {He} lays {n} equal rows and keeps one row.
        {He} exchanges every {n} for a single one.
        A machine divides the total by {n}.
        {He} stacks {n} equal towers and keeps one tower.""",
    "question": """
        How many {things} does {name} have now?
        What is {name}'s number of {things} now?
        How many does {name} have in the end?
        How many {things} does {he} have at the end?
        What is {name}'s final number of {things}?
        How many {things} does {name} own now?
        Find how many {things} {name} has now.
        Now how many {things} does {he} have?
        How many {things} has {name} got now?

        Count the {things} that {name} has now.
        Tell me how many {things} {he} has today.
        In the end, {name} has how many {things}?""",
}

TEMPLATES["zh"] = {
    "opening": """
        {name}有{k}。
        {name}一开始有{k}。
        {name}的包里有{k}。
        {name}手里有{k}。
        起初，{name}有{k}。
        早上，{name}有{k}。
        {name}收集了{k}。
        {name}攒了{k}。
        {name}的盒子里有{k}。

        {name}的桌上摆着{k}。
        {name}原先共有{k}。
        今天{name}带来了{k}。""",
    "add": """
        {he}又买了{c}。
        后来{he}捡到{c}。
        朋友送给{him}{c}。
        妈妈给了{him}{c}。
        {he}又得到{c}。
        然后增加了{c}。
        {he}收到的礼物是{k}。
        {he}又找到{c}。
        {he}又赢了{c}。
        接着{he}添了{c}。
        邻居送给{him}{k}。
        {he}又领到{c}。

        邮递员给{him}送来{c}。
        姑姑寄给{him}{k}。
        {he}又挣到{c}。
        {he}再放进{c}。""",
    "sub": """
        {he}送走了{c}。
        {he}丢了{c}。
        {he}卖掉{c}。
        {he}给了朋友{c}。
        {he}送给弟弟{k}。
        后来{he}用掉{c}。
        然后减少了{c}。
        朋友拿走了{c}。
        接着{he}扔掉{c}。
        {he}寄给叔叔{k}。
        {he}分给同学{c}。
        {he}卖给商店{c}。

        {he}捐出{c}。
        小偷偷走了{c}。
        {he}交给老师{c}。
        有{c}掉进了河里。""",
    "mul": """
        数量变成原来的{n}倍。
        现在的数量是刚才的{n}倍。
        {he}让数量变成{n}倍。
        后来数量增加到{n}倍。
        魔法师把数量乘以{n}。
        {he}把每{m}都换成{c}。
        每{m}都变成了{c}。
        总数乘以{n}。
        不久，数量达到原来的{n}倍。
        {he}用每{m}换来{c}。
        数量变成了{word}。
        交换以后，数量是之前的{n}倍。

        仙女把总数变成{n}倍。
        {he}拿每{m}去换回{c}。
        如今的数目是先前的{n}倍。
        机器使数目扩大到{word}。""",
    "div": """
        {he}平均分成{n}份，只留一份。
        {he}只留下{word}。
        {he}平均分成{n}堆，只留一堆。
        总数除以{n}。
        {he}平均装进{n}个盒子，只留一盒。
        数量变成原来的{word}。
        魔法师把数量除以{n}。
        {he}把每{c}换成一{m}。
        {he}平均分成{n}组，只留一组。
        {he}平均装成{n}袋，只留一袋。
        每{c}合成了一{m}。
        {n}个人平分，{he}得到一份。

        {he}平均摆成{n}排，只要一排。
        {he}拿每{c}去换回一{m}。
        机器把数目除以{n}。
        {he}平均叠成{n}摞，只要一摞。""",
    "question": """
        {name}现在有多少{m}{things}？
        现在{he}有多少{m}{things}？
        {name}最后有多少{m}？
        {he}最后有多少{m}{things}？
        最后{name}的{things}数量是多少？
        {he}如今有多少{m}{things}？
        求{name}现在有多少{m}{things}。
        最后{name}共有多少{m}{things}？
        最后{name}手里有多少{m}{things}？

        请数出{name}现有多少{m}{things}。
        告诉我{he}总共有多少{m}{things}。
        到头来，{name}有多少{m}{things}？""",
}

# Sentences with a number that does not matter: another person (of the other gender: "he" stays the
# one of the story), time or place. The robustness suites put them between the others, those that
# count ({k}) only first or last, where "them" and "each one" cannot mean what they count.
DISTRACTORS = {
    "en": """
        {name} is {n} years old.
        {name} sleeps for {n} hours.
        It is {n} o'clock.
        The way to school takes {n} minutes.
        The next town is {n} miles away.
        Outside it is {n} degrees.
        {name} has {k}.
        A year ago, {name} had {k}.""",
    "zh": """
        {name}今年{n}岁。
        {name}睡了{n}小时。
        现在是{n}点钟。
        去学校要走{n}分钟。
        下一个镇子离这里{n}公里。
        外面的气温是{n}度。
        {name}有{k}。
        一年前，{name}有{k}。""",
}


def lines(text):
    """A block of text as a tuple of its non-empty lines."""
    return tuple(line.strip() for line in text.strip().splitlines() if line.strip())


def pairs(text):
    """"Mia she, Tom he" as (("Mia", "she"), ("Tom", "he"))."""
    return tuple(tuple(entry.split()) for entry in text.split(","))


NAMES = {lang: pairs(text) for lang, text in NAMES.items()}
OBJECTS = {lang: pairs(text) for lang, text in OBJECTS.items()}
TEMPLATES = {lang: {kind: lines(text) for kind, text in blocks.items()}
             for lang, blocks in TEMPLATES.items()}
DISTRACTORS = {lang: lines(text) for lang, text in DISTRACTORS.items()}
